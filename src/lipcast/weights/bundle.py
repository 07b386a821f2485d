"""The networks of one checkpoint, loaded.

Input: a checkpoint directory, a device, a precision and adapters. Output: `ModelBundle`. Modules are
built without memory and filled strictly; adapters are merged and weights quantised in the stream
while they are read. The text encoder is loaded for a new prompt only, and let go again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from lipcast.config.precision import StoredPrecision
from lipcast.env import logger
from lipcast.errors import CheckpointError
from lipcast.models.dit import DiT
from lipcast.models.speech import SpeechConfig, SpeechEncoder, speech_name
from lipcast.models.text import TextEncoder, text_name
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_tiny import TinyDecoder
from lipcast.weights.adapters import adapters_of
from lipcast.weights.checkpoint import (
    MODEL_PARTS,
    TEXT_PARTS,
    CheckpointFiles,
    find_checkpoint,
    read_json,
)
from lipcast.weights.configs import read_configs, text_config
from lipcast.weights.disk import check_downloaded
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into, without_memory
from lipcast.weights.lora import LoraSpec, merge_loras
from lipcast.weights.manifest import read_manifest
from lipcast.weights.networks import open_dit, open_text, open_vae
from lipcast.weights.prompts import PromptCache, PromptEmbedding, read_embedding
from lipcast.weights.quant import quantised
from lipcast.weights.quant_linear import QuantLinear, quantised_layers
from lipcast.weights.read_ahead import ReadAhead
from lipcast.weights.schemes import SCHEMES
from lipcast.weights.source import RenamedSource, TensorSource

_log = logger("weights.bundle")
_KEPT_PROMPTS = 16
LoadText = Callable[[CheckpointFiles], TextEncoder]
LoadDiT = Callable[[DiT, TensorSource], None]
NetworkName = Literal["dit", "vae", "speech"]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(slots=True)
class ModelBundle:
    """Everything that generation computes with."""

    files: CheckpointFiles
    dit: DiT
    vae: VideoVAE
    speech_encoder: SpeechEncoder | None
    """None where the speech encoder is not loaded, whose library alone takes seconds to import."""
    device: torch.device
    prompts: PromptCache | None = None
    """Cache of prompt embeddings between runs; None: no cache."""
    tiny_decoder: TinyDecoder | None = None
    """Decoder that the user supplies, used in place of the autoencoder's."""
    _contexts: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)

    @property
    def speech(self) -> SpeechEncoder:
        """The speech encoder, which must be among the networks that were loaded."""
        assert self.speech_encoder is not None, "the speech encoder is not loaded"
        return self.speech_encoder

    @property
    def decoder(self) -> VideoVAE | TinyDecoder:
        """The network that decodes latents into frames."""
        return self.vae if self.tiny_decoder is None else self.tiny_decoder

    @property
    def precision(self) -> str:
        """Storage format of the transformer's layers: "int8", or a dtype where they are plain."""
        schemes = {m.scheme.precision for m in self.dit.modules() if isinstance(m, QuantLinear)}
        return ", ".join(sorted(schemes)) or str(self.dit.dtype).removeprefix("torch.")

    def encode_prompt(self, prompt: str | Path, load: LoadText | None = None) -> Tensor:
        """Return the context [tokens, channels] of a text, or of a `Path` to its embedding.

        Those of the last texts are kept in memory, and on the disk where there is a place. `load` loads the
        text encoder, by default for this text alone.
        """
        if isinstance(prompt, Path):
            return self._embedded(prompt).to(self.device)
        if prompt not in self._contexts:
            embedding = embed_prompt(prompt, self.files, self.prompts, load)
            self._contexts[prompt] = embedding.context_TC.to(self.device)
            while len(self._contexts) > _KEPT_PROMPTS:
                self._contexts.popitem(last=False)
        return self._contexts[prompt]

    def encode_prompts(self, prompts: Mapping[int, str | Path]) -> dict[int, Tensor]:
        """Return the contexts of several prompts; the text encoder is loaded once at most."""
        load = cache(load_text_encoder)
        return {key: self.encode_prompt(prompt, load) for key, prompt in prompts.items()}

    def _embedded(self, path: Path) -> Tensor:
        context_TC = read_embedding(path).context_TC
        config = self.dit.config
        num_tokens, width = context_TC.shape if context_TC.dim() == 2 else (0, 0)
        if width != config.text_dim or not 0 < num_tokens <= config.text_len:
            raise CheckpointError(
                f"{path}: expected an embedding [1 to {config.text_len}, {config.text_dim}], got "
                f"{list(context_TC.shape)}; make it with the text encoder of this model"
            )
        return context_TC


def embed_prompt(
    prompt: str,
    files: CheckpointFiles,
    prompts: PromptCache | None,
    load: LoadText | None = None,
) -> PromptEmbedding:
    """Embed a text; the encoder is loaded only if `prompts` does not know the text.

    It runs on the CPU: once per prompt, with the same numbers whatever the video is computed on.
    Raises CheckpointError without a text encoder.
    """
    files.require(TEXT_PARTS)
    identity = "" if prompts is None else prompts.text_identity(files)
    known = None if prompts is None else prompts.get(prompt, identity)
    if known is not None:
        return PromptEmbedding(known, prompt, identity)
    embedding = PromptEmbedding((load or load_text_encoder)(files).encode(prompt), prompt, identity)
    if prompts is not None:
        prompts.put(embedding)
    return embedding


def load_bundle(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    precision: StoredPrecision | None = None,
    loras: Sequence[str | LoraSpec] = (),
    prompts: PromptCache | None = None,
    load_dit: LoadDiT | None = None,
    networks: Collection[NetworkName] = NETWORKS,
    speech_device: torch.device | None = None,
) -> ModelBundle:
    """Load transformer, VAE and speech encoder; the text encoder's files are only found.

    Of what is not among `networks` there are shapes only, and it cannot be computed with.

    `dtype` is what the transformer computes in; VAE and speech encoder are float32 on a CPU and
    follow it on a GPU. `precision` fp8, int8 or int4 quantises the transformer while it is read.
    `load_dit` fills the transformer in place of `load_into`. `speech_device` (by default `device`) is where
    the speech encoder runs.
    Raises CheckpointError for anything missing, broken or of another model.
    """
    files = find_checkpoint(directory, need=MODEL_PARTS)
    assert files.vae and files.speech
    if any(part in files.missing for part in TEXT_PARTS):
        _log.warning("%s: has no text encoder; give prompts as embeddings", directory)
    configs = read_configs(directory)
    side_dtype = dtype if device.type == "cuda" else torch.float32
    with without_memory():
        dit, vae = DiT(configs.dit), VideoVAE(configs.vae)
    if "dit" in networks:
        source = open_transformer(files, precision=precision, loras=loras, device=device)
        if load_dit is None:
            load_into(dit, source, dtype=dtype, device=device)
        else:
            load_dit(dit, source)
    else:
        dit.to(dtype)  # shapes only, but of what computes elsewhere
    if "vae" in networks:
        load_into(vae, open_vae(files.vae, configs.vae), dtype=side_dtype, device=device)
    speech = None
    if "speech" in networks:
        speech = load_speech_encoder(files.speech, device=speech_device or device)
    return ModelBundle(files, _frozen(dit), _frozen(vae), speech, device, prompts)


def open_transformer(
    files: CheckpointFiles,
    *,
    precision: StoredPrecision | None = None,
    loras: Sequence[str | LoraSpec] = (),
    device: torch.device | str = "cpu",
) -> TensorSource:
    """Open the transformer as it shall be loaded: adapters merged, then quantised.

    A converted checkpoint is mapped where its memory is the device's. Raises CheckpointError.
    """
    assert files.dit is not None
    mapped = torch.device(device).type == "cpu" and read_manifest(files.directory) is not None
    base = open_dit(files.dit, read_configs(files.directory).dit, mapped=mapped)
    stored = {scheme.precision for _, scheme in quantised_layers(base)}
    merged = merge_loras(base, adapters_of(files, loras))
    if torch.device(device).type != "cpu":
        # The disk and the GPU work at the same time.
        merged = ReadAhead(merged)
    if precision is None or precision not in SCHEMES or stored == {precision}:
        return merged
    if stored:
        raise CheckpointError(
            f"{files.directory}: is quantised to {', '.join(stored)}, and {precision} was asked "
            "for; leave the precision out, or load the checkpoint that it was converted from"
        )
    _log.info("quantising to %s while loading; `lipcast convert` does it once for all", precision)
    return quantised(merged, precision, device=torch.device(device))


def load_speech_encoder(folder: Path, *, device: torch.device) -> SpeechEncoder:
    """Load wav2vec2 from a Hugging Face folder, in float32."""
    weights = folder / "model.safetensors"
    if not weights.exists():
        weights = folder / "pytorch_model.bin"
    with without_memory():
        encoder = SpeechEncoder(SpeechConfig.from_json(read_json(folder / "config.json")))
    source = RenamedSource(open_tensors(weights), speech_name)
    load_into(encoder, source, dtype=torch.float32, device=device)
    return _frozen(encoder)


def load_text_encoder(files: CheckpointFiles) -> TextEncoder:
    """Load UMT5 on the CPU: it runs once per prompt and is let go."""
    files.require(TEXT_PARTS)
    assert files.text
    config = text_config(files.directory)
    if files.tokenizer is not None:
        check_downloaded(files.tokenizer / "tokenizer.json")
    with without_memory():
        encoder = TextEncoder(config, files.tokenizer)
    # Mapped: what the system takes back under pressure it can read again, so 11 GB fit anywhere.
    source = open_text(files.text, config, mapped=True)
    dtype = torch.float32 if config.dim < 1024 else _only_float(source)
    load_into(encoder, RenamedSource(source, text_name), dtype=dtype)
    return _frozen(encoder)


def _only_float(source: TensorSource) -> torch.dtype | None:
    """Return None where the weights share one dtype, else the dtype that they are to have."""
    parts = {
        f"{layer}.{part}"
        for layer, scheme in quantised_layers(source)
        for part in scheme.part_shapes(2, 2)
    }
    found = {info.dtype for name, info in source.infos.items() if name not in parts}
    return None if len(found) == 1 else torch.bfloat16


def _frozen(module: _Module) -> _Module:
    module.eval().requires_grad_(False)
    return module
