"""What cannot be read is called what it is: another model, another format, half a download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lipcast.errors import CheckpointError
from lipcast.weights.bundle import load_bundle, load_text_encoder
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.networks import open_dit
from synthetic import SMALL

from .packs import (
    FP8,
    VAE,
    Tensors,
    note,
    without,
    write,
)

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
@pytest.mark.parametrize(
    ("stem", "prefix"), [("diffusion_pytorch_model", ""), ("my_model", "model.diffusion_model.")]
)
def test_another_model_of_the_family_is_named(
    tmp_path: Path, kind: str, stem: str, prefix: str
) -> None:
    shapes, said = OTHER_WAN[kind]
    names = {"blocks.0.self_attn.q.weight": (2, 2), **shapes}
    write(
        tmp_path / f"{stem}.safetensors",
        {prefix + name: torch.zeros(1).expand(shape).to(FP8) for name, shape in names.items()},
    )
    with pytest.raises(CheckpointError, match=rf"{stem}\.safetensors: .*{said}"):
        files = find_checkpoint(tmp_path, need=() if prefix == "" else ("dit",))
        open_dit(files.dit or tmp_path, SMALL.dit)


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
def test_what_lies_there_instead_of_a_part_is_named(tmp_path: Path, kind: str) -> None:
    shapes, said = NO_PART[kind]
    write(tmp_path / "what.safetensors", {n: torch.zeros(s) for n, s in shapes.items()})
    with pytest.raises(
        CheckpointError, match=rf"(?s)Missing:.*no use.*what\.safetensors: .*{said}"
    ):
        find_checkpoint(tmp_path)


def test_a_speech_encoder_without_its_folder_is_named(source: Path) -> None:
    folder = source / "wav2vec2-large-xlsr-53-english"
    (folder / "model.safetensors").rename(source / "wav2vec2_large_english_fp16.safetensors")
    shutil.rmtree(folder)
    with pytest.raises(
        CheckpointError, match=r"english_fp16\.safetensors: .*its folder with config"
    ):
        find_checkpoint(source)


def test_a_folder_of_diffusers_of_another_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    layers = {"blocks.0.attn1.to_q.weight": torch.ones(2, 2)}
    write(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", layers)
    said = r"(?s)Missing:.*made for WanPipeline.*transformer.*without its audio layers"
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint(tmp_path)


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


def test_an_unfinished_download_of_the_hub_is_named(source: Path) -> None:
    folder = source / ".cache" / "huggingface" / "download"
    folder.mkdir(parents=True)
    (source / VAE).rename(folder / "abc.incomplete")
    with pytest.raises(CheckpointError, match=r"abc\.incomplete: a download that has not finished"):
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
