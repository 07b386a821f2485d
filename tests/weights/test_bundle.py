"""Loading as generation does it: adapters and quantisation in the stream, converted directories."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lipcast.config.models import DiTConfig
from lipcast.config.precision import StoredPrecision
from lipcast.errors import CheckpointError
from lipcast.models.dit import DiT
from lipcast.weights.adapters import adapters_of
from lipcast.weights.bundle import load_bundle
from lipcast.weights.checkpoint import checkpoint_dir, find_checkpoint, models_dir
from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.lora import LoraSpec
from lipcast.weights.quant_linear import QuantLinear
from synthetic import SMALL

from .conftest import TINY

LAYER = "blocks.1.ffn.0"


def write_adapter(path: Path, *, seed: int = 0) -> Path:
    config: DiTConfig = SMALL.dit
    generator = torch.Generator().manual_seed(seed)
    factors = {
        f"base_model.model.{LAYER}.lora_A.default.weight": (4, config.dim),
        f"base_model.model.{LAYER}.lora_B.default.weight": (config.ffn_dim, 4),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in factors.items()}
    save_file(tensors, path, {"alpha": "4"})
    return path


def load(directory: Path, **how: Any) -> DiT:
    return load_bundle(directory, device=torch.device("cpu"), dtype=torch.float32, **how).dit


def weight(dit: DiT, layer: str = LAYER) -> Tensor:
    return dit.get_submodule(layer).weight.detach()


def delta(path: Path) -> Tensor:
    from safetensors.torch import load_file

    a, b = (load_file(path)[f"base_model.model.{LAYER}.lora_{s}.default.weight"] for s in "AB")
    return b @ a


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_quantised_while_loading_is_what_converting_gives(
    source: Path, tmp_path: Path, precision: StoredPrecision
) -> None:
    adapter = LoraSpec(write_adapter(tmp_path / "style.safetensors"), 0.5)
    streamed = load(source, precision=precision, loras=[adapter])
    convert(ConvertRequest(source, tmp_path / "out", precision, (adapter,)))
    converted = load(tmp_path / "out")
    assert isinstance(streamed.get_submodule(LAYER), QuantLinear)
    state = converted.state_dict()
    assert state.keys() == streamed.state_dict().keys()
    for name, tensor in streamed.state_dict().items():
        # What is not quantised keeps the precision of the stream; a conversion stores 16 bits.
        same = tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
        assert torch.equal(same.float(), state[name].to(same.dtype).float()), name
    again = load(tmp_path / "out", precision=precision)
    assert isinstance(again.get_submodule(LAYER), QuantLinear)


def test_a_quantised_directory_is_not_quantised_to_something_else(
    source: Path, tmp_path: Path
) -> None:
    convert(ConvertRequest(source, tmp_path / "out", "int8"))
    with pytest.raises(
        CheckpointError, match="is quantised to int8, and int4 was asked for; leave"
    ):
        load(tmp_path / "out", precision="int4")
    adapter = LoraSpec(write_adapter(tmp_path / "style.safetensors"))
    with pytest.raises(CheckpointError, match="merge into the original checkpoint, then convert"):
        load(tmp_path / "out", loras=[adapter])


def test_adapters_add_up_in_the_stream(source: Path, tmp_path: Path) -> None:
    base = weight(load(source))
    published = write_adapter(source / "liveavatar.safetensors")
    style = write_adapter(tmp_path / "style.safetensors", seed=1)
    one = weight(load(source))
    both = weight(load(source, loras=[f"{style}:0.25"]))
    torch.testing.assert_close(one, base + delta(published), atol=1e-5, rtol=0)
    wanted = base + delta(published) + 0.25 * delta(style)
    torch.testing.assert_close(both, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("named", ["file", "folder", "repository"])
def test_naming_the_published_adapter_does_not_merge_it_twice(
    source: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    published = write_adapter(source / "liveavatar.safetensors")
    monkeypatch.chdir(source.parent)
    words = {"file": published, "folder": "model", "repository": "Quark-Vision/Live-Avatar"}[named]
    specs = adapters_of(find_checkpoint(source), [f"{words}:0.5"])
    assert [(spec.path.resolve(), spec.weight) for spec in specs] == [(published.resolve(), 0.5)]


def test_the_public_repository_names_the_pulled_adapter(source: Path) -> None:
    wanted = ["Quark-Vision/Live-Avatar"]
    with pytest.raises(CheckpointError, match=r"found nothing there.*lipcast pull live-avatar-14b"):
        adapters_of(find_checkpoint(source), wanted)
    pulled = models_dir() / "live-avatar-14b"
    pulled.mkdir(parents=True)
    try:
        write_adapter(pulled / "liveavatar.safetensors")
        (spec,) = adapters_of(find_checkpoint(source), wanted)
        assert spec.path == pulled / "liveavatar.safetensors"
        assert checkpoint_dir("live-avatar-14b") == pulled
    finally:
        shutil.rmtree(pulled)


def test_a_conversion_has_its_adapters_inside(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = write_adapter(source / "liveavatar.safetensors")
    manifest = convert(ConvertRequest(source, tmp_path / "out", "fp32"))
    assert [lora["file"] for lora in manifest["recipe"]["loras"]] == ["liveavatar.safetensors"]
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        again = weight(load(tmp_path / "out", loras=[str(published)]))
    assert "merged already" in caplog.text
    assert torch.equal(again, weight(load(source)))
    with pytest.raises(
        CheckpointError, match=r"merged with weight 1\.0 .* got weight 0\.5; convert"
    ):
        load(tmp_path / "out", loras=[f"{published}:0.5"])


def test_an_adapter_that_is_not_there(source: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: expected an adapter"):
        load(source, loras=["nowhere.safetensors:0.8"])


def test_an_adapter_of_another_model(source: Path) -> None:
    path = write_adapter(source / "liveavatar.safetensors")
    save_file({"transformer.h.0.lora_A.weight": torch.zeros(4, 8)}, path)
    with pytest.raises(CheckpointError, match=r"liveavatar\.safetensors: .*another model"):
        load(source)


def test_names_and_directories_that_are_none() -> None:
    assert checkpoint_dir("tiny") == TINY
    with pytest.raises(CheckpointError, match=r"got 'nowhere'.*check the path, or see `lipcast"):
        checkpoint_dir("nowhere")


def test_files_in_each_others_place(source: Path) -> None:
    """Swapped or renamed: every network refuses another's tensors, with the file's name."""
    vae, text = source / "Wan2.1_VAE.pth", source / "models_t5_umt5-xxl-enc-bf16.pth"
    text_bytes = text.read_bytes()
    vae.write_bytes(text_bytes)
    with pytest.raises(
        CheckpointError,
        match=r"Wan2\.1_VAE\.pth: expected the video autoencoder.* found the text encoder \(UMT5\)",
    ):
        load(source)
