"""Checkpoints as people have them: repacked, cast, renamed, of another model, half downloaded."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipcast.cli.main import main
from lipcast.config.precision import StoredPrecision
from lipcast.errors import CheckpointError
from lipcast.models.text import text_name
from lipcast.weights.bundle import load_bundle, load_text_encoder, open_transformer
from lipcast.weights.checkpoint import checkpoint_dir, find_checkpoint
from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.files import open_tensors
from lipcast.weights.networks import open_dit, open_text, open_vae
from lipcast.weights.safetensors_file import SafetensorsSource
from profiles import examples
from sounds import EXAMPLES, write_wav
from synthetic import SMALL

from .packs import (
    BF16,
    FP8,
    PACKS,
    PREFIXES,
    TEXT,
    VAE,
    Tensors,
    assert_same,
    is_matrix,
    note,
    packed,
    scaled,
    without,
    write,
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", PACKS)
def test_a_repacked_transformer_is_read_under_its_public_name(
    tmp_path: Path, dit: Tensors, kind: str, prefix: str
) -> None:
    file, exact = packed(dit, kind, prefix)
    path = write(tmp_path / "wan2.2_s2v_14B_fp8_scaled.safetensors", file)
    assert find_checkpoint(tmp_path, need=()).dit == path
    assert_same(dict(open_dit(path, SMALL.dit)), exact)


@pytest.mark.parametrize("kind", ["fp8_scaled, scale_weight", "fp8_e4m3fn"])
def test_a_repacked_transformer_loads_and_takes_adapters(
    source: Path, dit: Tensors, tmp_path: Path, kind: str
) -> None:
    """It is loaded as the same weights in bf16 are, and converted likewise."""
    file, exact = packed(dit, kind, "model.diffusion_model.")
    without(source, "diffusion_pytorch_model*")
    write(source / "s2v.safetensors", file)
    layer = "blocks.0.ffn.0"
    lora = write(
        tmp_path / "style.safetensors",
        {
            f"diffusion_model.{layer}.lora_A.weight": torch.ones(2, 128),
            f"diffusion_model.{layer}.lora_B.weight": torch.ones(256, 2),
        },
    )
    bundle = load_bundle(source, device=torch.device("cpu"), dtype=BF16, loras=[str(lora)])
    state = bundle.dit.state_dict()
    wanted = (exact[f"{layer}.weight"].float() + 2).bfloat16()
    assert torch.equal(state[f"{layer}.weight"], wanted)
    name = "blocks.1.self_attn.q.weight"
    assert torch.equal(state[name], exact[name])
    convert(ConvertRequest(source, tmp_path / "out", "bf16"))
    assert_same(dict(open_dit(find_checkpoint(tmp_path / "out").dit or source, SMALL.dit)), exact)


@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    cells=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 8])),
    size=st.tuples(st.integers(1, 5), st.integers(1, 3)), dtype=st.sampled_from([FP8, torch.int8]),
    name=st.sampled_from(["scale_weight", "weight_scale", "weight_scale_inv"]),
)  # fmt: skip
def test_any_grid_of_scales_is_multiplied_out(
    tmp_path: Path, cells: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, name: str
) -> None:
    shape = tuple(a * b for a, b in zip(cells, size, strict=True))
    stored, scale, exact = scaled(torch.randn(shape), dtype, cells)
    path = write(tmp_path / "w.safetensors", {"a.weight": stored, f"a.{name}": scale})
    assert_same(dict(open_dit(path, SMALL.dit)), {"a.weight": exact})


def test_no_stored_weight_is_kept_beside_its_product(
    tmp_path: Path, dit: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read in 8 bits is gone when the next tensor is read."""
    file, _ = packed(dit, "fp8_scaled, scale_weight")
    source = open_dit(write(tmp_path / "x.safetensors", file), SMALL.dit)
    read, seen = SafetensorsSource.read, []

    def watched(self: SafetensorsSource, name: str) -> Tensor:
        tensor = read(self, name)
        if tensor.dtype == FP8:
            seen.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafetensorsSource, "read", watched)
    held = []
    for name in source.infos:
        held.append(source.read(name))
        assert not [ref for ref in seen if ref() is not None]
    assert len(seen) > 10


def transformers_names(text: Tensors) -> Tensors:
    names = {name: text_name(name).replace("stack.", "encoder.") for name in text}
    names["token_embedding.weight"] = "shared.weight"
    return {names[name]: tensor for name, tensor in text.items()}


@pytest.mark.parametrize("kind", [None, *PACKS])
def test_the_text_encoder_under_the_names_of_transformers(
    tmp_path: Path, text: Tensors, kind: str | None
) -> None:
    """The tokenizer, the second name of the embedding and a decoder in the file are left out."""
    file, exact = packed(text, kind) if kind else (text, text)
    renamed: Tensors = {}
    official = dict(zip(text, transformers_names(text), strict=True))
    for name, tensor in file.items():
        owner, _, leaf = name.rpartition(".")
        new = official.get(f"{owner}.weight", name).removesuffix(".weight")
        renamed[f"{new}.{leaf}" if owner else name] = tensor
    renamed |= {
        "spiece_model": note("a model of sentences"),
        "encoder.embed_tokens.weight": text["token_embedding.weight"].clone(),
        "decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2),
    }
    path = write(tmp_path / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", renamed)
    assert find_checkpoint(tmp_path, need=()).text == path
    assert_same(dict(open_text(path, SMALL.text)), exact)


@pytest.mark.parametrize("width", [64, 1024])
@pytest.mark.parametrize("kind", ["fp8_e4m3fn", "fp8_scaled, scale_weight", "fp16", "mixed"])
def test_a_text_encoder_of_any_width_and_dtype_runs(
    source: Path, text: Tensors, width: int, kind: str
) -> None:
    if width == 1024:
        text = _widened(source, text)
    if kind in PACKS:
        file, _ = packed(text, kind)
    else:
        other = torch.float16 if kind == "fp16" else torch.float32
        file = {
            n: t if kind == "mixed" and is_matrix(n, t) else t.to(other) for n, t in text.items()
        }
    without(source, "models_t5*")
    write(source / "models_t5_umt5-xxl-enc-fp8_e4m3fn.safetensors", file)
    context = load_text_encoder(find_checkpoint(source)).encode("a calm man")
    assert context.shape[1] == width
    assert torch.isfinite(context).all()


def _widened(source: Path, text: Tensors) -> Tensors:
    """Return a text encoder of width 1024, from which on stored dtypes are kept."""
    path = source / "t5_config.json"
    config = json.loads(path.read_text()) | {"dim": 1024}
    path.write_text(json.dumps(config))

    def wide(name: str, tensor: Tensor) -> Tensor:
        if "pos_embedding" in name:
            return tensor
        return tensor.repeat(
            [16 if size == 64 and _is_width(name, i) else 1 for i, size in enumerate(tensor.shape)]
        )

    return {name: wide(name, tensor) for name, tensor in text.items()}


def _is_width(name: str, axis: int) -> bool:
    """Return whether an axis is the width of the model, and not of attention inside it."""
    outward = name.endswith(("attn.o.weight", "fc2.weight"))
    return axis == 0 if outward or "norm" in name else axis == 1


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("wan_2.1_vae.safetensors", ""),
        ("Wan2_1_VAE_bf16.safetensors", "model."),
        ("vae/whatever.safetensors", "first_stage_model."),
    ],
)
def test_the_autoencoder_under_public_names(
    tmp_path: Path, vae: Tensors, name: str, prefix: str
) -> None:
    path = write(tmp_path / name, {prefix + key: t.bfloat16() for key, t in vae.items()})
    assert find_checkpoint(tmp_path, need=()).vae == path
    found = dict(open_vae(path, SMALL.vae))
    assert_same(found, {key: tensor.bfloat16() for key, tensor in vae.items()})


def test_a_folder_of_diffusers(source: Path, dit: Tensors, vae: Tensors, text: Tensors) -> None:
    """The parts lie in folders, under names of their own; a set has an index."""
    dit_names = {
        "blocks.0.self_attn.o.weight": "blocks.0.attn1.to_out.0.weight",
        "blocks.0.cross_attn.norm_k.weight": "blocks.0.attn2.norm_k.weight",
        "blocks.0.norm3.bias": "blocks.0.norm2.bias",
        "blocks.0.modulation": "blocks.0.scale_shift_table",
        "head.modulation": "scale_shift_table",
        "text_embedding.2.bias": "condition_embedder.text_embedder.linear_2.bias",
    }
    vae_names = {
        "decoder.upsamples.0.residual.2.weight": "decoder.up_blocks.0.resnets.0.conv1.weight",
        "decoder.upsamples.2.resample.1.weight": "decoder.up_blocks.0.upsamplers.0.resample.1.weight",
        "conv1.bias": "quant_conv.bias",
        "encoder.head.0.gamma": "encoder.norm_out.gamma",
    }
    folder = source / "transformer"
    named = {dit_names.get(name, name): tensor for name, tensor in dit.items()}
    half = len(named) // 2
    shards = [dict(list(named.items())[:half]), dict(list(named.items())[half:])]
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        write(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    write(
        source / "vae" / "diffusion_pytorch_model.safetensors",
        {vae_names.get(name, name): tensor for name, tensor in vae.items()},
    )
    write(source / "text_encoder" / "model.safetensors", transformers_names(text))
    shutil.move(source / "google" / "umt5-xxl", source / "tokenizer")
    shutil.move(source / "wav2vec2-large-xlsr-53-english", source / "audio_encoder")
    without(source, "diffusion_pytorch_model*", VAE, TEXT)
    files = find_checkpoint(source)
    assert files.dit == index
    assert files.tokenizer == source / "tokenizer"
    assert files.speech == source / "audio_encoder"
    assert files.vae and files.text
    assert_same(dict(open_dit(index, SMALL.dit)), dit)
    assert_same(dict(open_vae(files.vae, SMALL.vae)), vae)
    assert_same(dict(open_text(files.text, SMALL.text)), text)


def test_contents_decide_over_suffixes(source: Path, vae: Tensors) -> None:
    """Safetensors are read under any name; a pickle is called one."""
    without(source, VAE)
    torch.save(vae, source / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"this is a PyTorch file; rename it to a\.pth"):
        find_checkpoint(source)
    (source / "a.safetensors").unlink()
    for name in ("b.sft", "b.pth"):
        path = write(source / name, vae)
        assert find_checkpoint(source).vae == path
        assert_same(dict(open_vae(path, SMALL.vae)), vae)
        path.unlink()


def test_weights_inside_a_trainers_checkpoint(tmp_path: Path, vae: Tensors) -> None:
    path = tmp_path / "epoch.ckpt"
    torch.save({"epoch": 3, "state_dict": vae}, path)
    assert_same(dict(open_tensors(path)), vae)


def test_a_file_stands_for_its_directory(source: Path, tmp_path: Path, dit: Tensors) -> None:
    index = source / "diffusion_pytorch_model.safetensors.index.json"
    assert checkpoint_dir(index) == source
    assert checkpoint_dir(next(source.glob("diffusion_pytorch_model-00001-*"))) == source
    without(source, "diffusion_pytorch_model*")
    path = write(source / "wan2.2_s2v_14B_bf16.safetensors", dit)
    assert checkpoint_dir(path) == source
    alone = write(tmp_path / "alone" / "wan2.2_s2v_14B_bf16.safetensors", dit)
    said = r"expected the directory .* got a file \(the transformer of Wan2\.2-S2V\); put it beside"
    with pytest.raises(CheckpointError, match=said):
        checkpoint_dir(alone)


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_a_repacked_transformer_is_quantised_as_the_same_in_bf16(
    tmp_path: Path, original: Path, dit: Tensors, precision: StoredPrecision
) -> None:
    source = Path(shutil.copytree(original, tmp_path / "model"))
    file, exact = packed(dit, "fp8_scaled, scale_weight")
    without(source, "diffusion_pytorch_model*")
    write(source / "s2v.safetensors", file)
    found = dict(open_transformer(find_checkpoint(source), precision=precision))
    (source / "s2v.safetensors").unlink()
    write(source / "s2v.safetensors", exact)
    assert_same(found, dict(open_transformer(find_checkpoint(source), precision=precision)))


@pytest.mark.slow
def test_the_command_line_takes_repacked_files(
    source: Path, dit: Tensors, text: Tensors, vae: Tensors
) -> None:
    file, _ = packed(dit, "fp8_scaled, scale_weight", "model.diffusion_model.")
    without(source, "diffusion_pytorch_model*", VAE, TEXT)
    write(source / "wan2.2_s2v_14B_fp8_scaled.safetensors", file)
    write(source / "wan_2.1_vae.safetensors", vae)
    write(source / "umt5-xxl-enc-bf16.safetensors", text)
    out, sound = source / "talk.mp4", write_wav(source / "voice.wav", 0.4)
    image = str(EXAMPLES / "portrait_0.png")
    what = ["--image", image, "--audio", str(sound), "--size", "64*64", "--device", "cpu"]
    assert main(["generate", "--ckpt_dir", str(source), *what, "-o", str(out)]) == 0
    assert out.stat().st_size > 1000
