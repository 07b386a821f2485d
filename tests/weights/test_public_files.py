"""Checkpoints as people have them: repacked, cast, renamed, of another model, half downloaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lipcast.cli.main import main
from lipcast.errors import CheckpointError
from lipcast.models.text import text_name
from lipcast.weights.bundle import load_bundle, load_text_encoder
from lipcast.weights.checkpoint import checkpoint_dir, find_checkpoint
from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.files import open_tensors
from lipcast.weights.networks import open_dit, open_text, open_vae
from sounds import EXAMPLES, write_wav
from synthetic import SMALL

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
VAE, TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def dit(original: Path) -> Tensors:
    return dict(open_tensors(original / "diffusion_pytorch_model.safetensors.index.json"))


@pytest.fixture(scope="module")
def text(original: Path) -> Tensors:
    return dict(open_tensors(original / TEXT))


@pytest.fixture(scope="module")
def vae(original: Path) -> Tensors:
    return dict(open_tensors(original / VAE))


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def is_matrix(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.dim() == 2


def note(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def scaled(
    weight: Tensor, dtype: torch.dtype, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an 8-bit weight, its scales on a grid, and the exact product as bf16."""
    rows, columns = (size // cells for size, cells in zip(weight.shape, grid, strict=True))
    cells = weight.float().view(grid[0], rows, grid[1], columns)
    largest = 127.0 if dtype is torch.int8 else torch.finfo(dtype).max
    scale = cells.abs().amax((1, 3), keepdim=True) / largest
    whole = (cells / scale).round() if dtype is torch.int8 else cells / scale
    stored = whole.to(dtype)
    exact = (stored.float() * scale).view_as(weight).bfloat16()
    return stored.view(weight.shape), scale.view(grid), exact


def comfy_old(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, FP8, (1, 1))
    return {
        f"{layer}.weight": stored,
        f"{layer}.scale_weight": scale.view(1),
        f"{layer}.scale_input": torch.ones(1),
    }, exact


def comfy_new(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, FP8, (1, 1))
    return {
        f"{layer}.weight": stored,
        f"{layer}.weight_scale": scale.view(()),
        f"{layer}.input_scale": torch.ones(()),
        f"{layer}.comfy_quant": note('{"format": "float8_e4m3fn"}'),
    }, exact


def scaled_rows(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, torch.int8, (len(weight), 1))
    return {f"{layer}.weight": stored, f"{layer}.weight_scale": scale}, exact


def scaled_blocks(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, torch.float8_e5m2, (len(weight), 2))
    return {f"{layer}.weight": stored, f"{layer}.scale_weight": scale[..., None]}, exact


def scaled_tiles(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, FP8, (2, 2))
    return {f"{layer}.weight": stored, f"{layer}.weight_scale_inv": scale}, exact


def plain_cast(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    return {f"{layer}.weight": weight.to(FP8)}, weight.to(FP8).bfloat16()


def plain_cast_e5m2(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored = weight.to(torch.float8_e5m2)
    return {f"{layer}.weight": stored}, stored.bfloat16()


PACKS: dict[str, Callable[[str, Tensor], tuple[Tensors, Tensor]]] = {
    "fp8_scaled, scale_weight": comfy_old,
    "fp8_scaled, weight_scale and comfy_quant": comfy_new,
    "int8 by row": scaled_rows,
    "fp8_e5m2 by blocks of a row": scaled_blocks,
    "fp8 by tiles": scaled_tiles,
    "fp8_e4m3fn": plain_cast,
    "fp8_e5m2": plain_cast_e5m2,
}
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")


def packed(tensors: Tensors, kind: str, prefix: str = "") -> tuple[Tensors, Tensors]:
    """Return a repacked file and the tensors that it stands for."""
    file: Tensors = {"scaled_fp8": torch.zeros(2).to(FP8)} if "scaled" in kind else {}
    exact: Tensors = {}
    for name, tensor in tensors.items():
        parts = {name: tensor}
        exact[name] = tensor
        if is_matrix(name, tensor) and tensor.shape[0] % 2 == 0:
            parts, exact[name] = PACKS[kind](name.removesuffix(".weight"), tensor)
        file |= {prefix + key: value for key, value in parts.items()}
    return file, exact


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def without(source: Path, *patterns: str) -> Path:
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        path.unlink()
    return source


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", PACKS)
def test_a_repacked_transformer_is_read_under_its_public_name(
    source: Path, dit: Tensors, kind: str, prefix: str
) -> None:
    file, exact = packed(dit, kind, prefix)
    path = write(source / "wan2.2_s2v_14B_fp8_scaled.safetensors", file)
    without(source, "diffusion_pytorch_model*")
    assert find_checkpoint(source).dit == path
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
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


def transformers_names(text: Tensors) -> Tensors:
    names = {name: text_name(name).replace("stack.", "encoder.") for name in text}
    names["token_embedding.weight"] = "shared.weight"
    return {names[name]: tensor for name, tensor in text.items()}


@pytest.mark.parametrize("kind", [None, *PACKS])
@pytest.mark.parametrize("extra", ["nothing", "spiece_model", "embed_tokens", "decoder"])
def test_the_text_encoder_under_the_names_of_transformers(
    source: Path, text: Tensors, kind: str | None, extra: str
) -> None:
    file, exact = packed(text, kind) if kind else (text, text)
    renamed: Tensors = {}
    official = dict(zip(text, transformers_names(text), strict=True))
    for name, tensor in file.items():
        owner, _, leaf = name.rpartition(".")
        new = official.get(f"{owner}.weight", name).removesuffix(".weight")
        renamed[f"{new}.{leaf}" if owner else name] = tensor
    renamed |= {
        "nothing": {},
        "spiece_model": {"spiece_model": note("a model of sentences")},
        "embed_tokens": {"encoder.embed_tokens.weight": text["token_embedding.weight"].clone()},
        "decoder": {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)},
    }[extra]
    path = write(source / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", renamed)
    without(source, "models_t5*")
    files = find_checkpoint(source)
    assert files.text == path
    assert_same(dict(open_text(path, SMALL.text)), exact)
    assert torch.isfinite(load_text_encoder(files).encode("a calm man")).all()


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
    source: Path, vae: Tensors, name: str, prefix: str
) -> None:
    path = write(source / name, {prefix + key: t.bfloat16() for key, t in vae.items()})
    without(source, VAE)
    assert find_checkpoint(source).vae == path
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


OTHER_WAN: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "t2v": ({"patch_embedding.weight": (5120, 16, 1)}, r"text-to-video \(T2V, 14B\)"),
    "1.3B": ({"patch_embedding.weight": (1536, 16, 1)}, r"T2V-1\.3B"),
    "i2v": ({"img_emb.proj.0.weight": (2,)}, r"image-to-video \(I2V\)"),
    "i2v 2.2": ({"patch_embedding.weight": (5120, 36, 1)}, r"I2V-A14B"),
    "5B": ({"patch_embedding.weight": (3072, 48, 1)}, r"TI2V-5B"),
    "vace": ({"vace_blocks.0.before_proj.weight": (2,)}, "VACE"),
    "animate": ({"face_adapter.fuser_blocks.0.q_norm.weight": (2,)}, "Animate"),
    "fun": ({"control_adapter.conv.weight": (2,)}, "Fun"),
    "infinitetalk": ({"audio_proj.proj1.weight": (2,)}, "InfiniteTalk"),
}


@pytest.mark.parametrize("kind", OTHER_WAN)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("official_name", [True, False])
def test_another_model_of_the_family_is_named(
    source: Path, kind: str, prefix: str, official_name: bool
) -> None:
    shapes, said = OTHER_WAN[kind]
    names = {"blocks.0.self_attn.q.weight": (2, 2), **shapes}
    without(source, "diffusion_pytorch_model*")
    stem = "diffusion_pytorch_model" if official_name else "my_model"
    write(
        source / f"{stem}.safetensors",
        {prefix + name: torch.zeros(1).expand(shape).to(FP8) for name, shape in names.items()},
    )
    with pytest.raises(CheckpointError, match=rf"{stem}\.safetensors: .*{said}"):
        files = find_checkpoint(source)
        open_dit(files.dit or source, SMALL.dit)


NO_PART: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "5B autoencoder": ({"decoder.upsamples.0.upsamples.0.residual.2.weight": (2,)}, "TI2V-5B"),
    "picture autoencoder": ({"decoder.up.0.block.0.conv1.weight": (2,)}, "autoencoder of pictures"),
    "t5xxl": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (2, 2)}, r"\(T5\); UMT5-XXL"),
    "clip": ({"vision_model.encoder.layers.0.mlp.fc1.weight": (2, 2)}, "CLIP"),
    "wav2vec2": ({"wav2vec2.feature_extractor.conv_layers.0.conv.weight": (2,)}, "speech encoder"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (2, 2)}, "FLUX"),
    "tiny decoder": ({"decoder.1.weight": (2,), "decoder.3.conv.0.weight": (2, 2)}, "--decoder"),
    "unknown": ({"a.b": (2,)}, "not known"),
}


@pytest.mark.parametrize("kind", NO_PART)
def test_what_lies_there_instead_of_a_part_is_named(source: Path, kind: str) -> None:
    shapes, said = NO_PART[kind]
    without(source, VAE)
    write(source / "what.safetensors", {n: torch.zeros(s) for n, s in shapes.items()})
    with pytest.raises(
        CheckpointError, match=rf"(?s)Missing:.*no use.*what\.safetensors: .*{said}"
    ):
        find_checkpoint(source)


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ({"a.weight_scale_2": torch.ones(1)}, "nvfp4"),
        ({"a.weight.absmax": torch.ones(1)}, "bitsandbytes"),
        ({"a.qzeros": torch.ones(1)}, "GPTQ or AWQ"),
        ({"a.wscales": torch.ones(1)}, "Nunchaku"),
        ({"a.weight._data": torch.ones(1)}, "quanto"),
        ({"a.comfy_quant": note('{"format": "mxfp8"}')}, "mxfp8"),
        ({"a.comfy_quant": note('{"format": "int8_tensorwise", "convrot": true}')}, "convrot"),
        ({"a.comfy_quant": note("[1]")}, "which is not read"),
        ({"a.comfy_quant": note("{")}, "is no JSON"),
        ({"a.weight": torch.ones(3, 2).to(FP8), "a.scale_weight": torch.ones(5)}, "do not divide"),
        ({"a.weight": torch.ones(3, 2).to(FP8), "a.scale_weight": torch.ones(0)}, "do not divide"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, marker: Tensors, said: str) -> None:
    path = write(tmp_path / "x.safetensors", {"b": torch.ones(1)} | marker)
    with pytest.raises(CheckpointError, match=said):
        dict(open_dit(path, SMALL.dit))


def test_a_format_in_the_metadata_is_named(tmp_path: Path) -> None:
    layers = {"layers": {"blocks.0.ffn.0": {"format": "nvfp4"}}}
    metadata = {"_quantization_metadata": json.dumps(layers)}
    path = write(tmp_path / "x.safetensors", {"b": torch.ones(1)}, metadata)
    with pytest.raises(CheckpointError, match=r"nvfp4 \(blocks\.0\.ffn\.0\)"):
        open_dit(path, SMALL.dit)


LEFT_BEHIND: dict[str, tuple[bytes, str]] = {
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs"),
    "web page": (b"<!DOCTYPE html><html>" * 40, "web page"),
    "answer": (b"Access to this model is restricted", "short text"),
    "zeros": (bytes(4096), "has not finished"),
}


@pytest.mark.parametrize("kind", LEFT_BEHIND)
@pytest.mark.parametrize(
    "name", ["config.json", "google/umt5-xxl/tokenizer.json", VAE, "wan_2.1_vae.safetensors"]
)
def test_what_a_download_left_is_named(source: Path, kind: str, name: str) -> None:
    content, said = LEFT_BEHIND[kind]
    if name.startswith("wan"):
        without(source, VAE)
    (source / name).write_bytes(content)
    if kind == "answer" and name.endswith(".json"):
        said = "JSON" if name == "config.json" else "tokenizer"
    with pytest.raises(CheckpointError, match=rf"{Path(name).name}: .*{said}"):
        load_text_encoder(find_checkpoint(source)).encode("hello")
        load_bundle(source, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("suffix", [".incomplete", ".part", ".crdownload", ".aria2", ".tmp"])
def test_a_download_that_has_not_finished_is_named(source: Path, suffix: str) -> None:
    (source / VAE).rename(source / f"{VAE}{suffix}")
    with pytest.raises(
        CheckpointError, match=rf"VAE\.pth\{suffix}: a download that has not finish"
    ):
        find_checkpoint(source)


def test_a_file_that_aria2_still_fills_is_not_read(source: Path) -> None:
    (source / f"{VAE}.aria2").touch()
    with pytest.raises(CheckpointError, match=rf"{VAE}: the download has not finished"):
        load_bundle(source, device=torch.device("cpu"), dtype=torch.float32)


def test_a_truncated_file_under_another_name_is_named(source: Path, vae: Tensors) -> None:
    without(source, VAE)
    path = write(source / "wan_2.1_vae.safetensors", vae)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"wan_2\.1_vae\.safetensors: .*cut short"):
        find_checkpoint(source)


def test_two_files_that_can_be_one_part(source: Path, vae: Tensors) -> None:
    without(source, VAE)
    for name in ("a", "b"):
        write(source / f"{name}.safetensors", vae)
    with pytest.raises(CheckpointError, match=r"found a\.safetensors, b\.safetensors; leave only"):
        find_checkpoint(source)


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
