"""Write a trained model as a checkpoint in the official layout, with a model card and hashes.

The folder is what `lipcast generate --model` takes. Weights are float16, the speech encoder's float32, as in
the embedded model. `taew2_1.safetensors` is the fast decoder, which is given with `--decoder`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lipcast.models.speech import speech_name
from lipcast.models.text import text_name
from lipcast.planning.tensors import text_tensors
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.disk import make_directory, sha256_of, write_text
from lipcast.weights.writer import write_tensors
from lipcast_train.networks.build import DOCUMENTS, Networks

FAST_DECODER = "taew2_1.safetensors"
HASHES = "SHA256SUMS"
_PREPROCESSOR = "preprocessor_config.json"


def export(folder: Path, networks: Networks, *, title: str, facts: Iterable[str] = ()) -> None:
    """Write the checkpoint; `facts` are lines of the model card. Raises OutputError."""
    speech = folder / Path(DOCUMENTS["speech"]).parent
    make_directory(speech)
    files = {
        folder / "diffusion_pytorch_model.safetensors": _half(networks.dit.state_dict()),
        folder / "Wan2.1_VAE.safetensors": _half(networks.vae.state_dict()),
        folder / "models_t5_umt5-tiny-enc.safetensors": _half(_official_text(networks)),
        folder / FAST_DECODER: _half(networks.decoder.state_dict()),
        speech / "model.safetensors": _official_speech(networks),
    }
    for path, tensors in files.items():
        write_tensors(path, tensors, metadata={"format": "pt"})
    vae = networks.vae.config
    changes = {"vae": {"mean": list(vae.mean), "std": list(vae.std)}}
    for network, name in DOCUMENTS.items():
        content = {**networks.sizes.document(network), **changes.get(network, {})}
        write_text(folder / name, json.dumps(content, indent=1) + "\n")
    preprocessor = checkpoint_dir("tiny") / speech.name / _PREPROCESSOR
    write_text(speech / _PREPROCESSOR, preprocessor.read_text("utf-8"))
    write_text(folder / "README.md", model_card(networks, title=title, facts=facts))
    write_hashes(folder)


def model_card(networks: Networks, *, title: str, facts: Iterable[str]) -> str:
    """Return the model card."""
    words = {
        "dit": "transformer",
        "vae": "autoencoder",
        "text": "text encoder",
        "speech": "speech encoder",
        "decoder": "fast decoder",
    }
    counts = {n: sum(p.numel() for p in getattr(networks, n).parameters()) for n in words}
    rows = [f"| {words[name]} | {count:,} |" for name, count in counts.items()]
    return "\n".join([
        "---", "license: apache-2.0", "tags: [talking-head, lip-sync, live-avatar]", "---", "",
        f"# {title}", "",
        "A small model of the Live Avatar family, trained with `lipcast-train`. A portrait, a voice",
        "and a prompt become a talking video:", "",
        "```", "lipcast generate --model . --image me.png --audio hello.wav -o out.mp4", "```", "",
        "| network | parameters |", "| --- | --- |", *rows, "",
        *(f"- {fact}" for fact in facts), "",
        "The weights are licensed under Apache-2.0. It draws what its training clips showed; it is a toy,",
        "and no likeness of real people was trained on unless clips of them were given.", "",
    ])  # fmt: skip


def write_hashes(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder, as `sha256sum -c` reads them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != HASHES)
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}" for path in paths]
    write_text(folder / HASHES, "\n".join(lines) + "\n")


def _half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().half() for name, tensor in tensors.items()}


def _official_text(networks: Networks) -> dict[str, Tensor]:
    """Return the text encoder under its official names."""
    stored = networks.text.state_dict()
    return {name: stored[text_name(name)] for name in text_tensors(networks.text.config)}


def _official_speech(networks: Networks) -> dict[str, Tensor]:
    """Return the speech encoder under the names of transformers, in float32."""
    named = {
        f"wav2vec2.{n.removeprefix('model.')}": t for n, t in networks.speech.state_dict().items()
    }
    assert all(speech_name(name) for name in named)
    return {name: tensor.detach().cpu().to(torch.float32) for name, tensor in named.items()}
