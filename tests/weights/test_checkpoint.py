"""Finding the parts of a checkpoint directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipcast.errors import CheckpointError
from lipcast.weights.checkpoint import PARTS, find_checkpoint

from .conftest import TINY


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The names that the published checkpoint has, without content."""
    names = [
        "config.json",
        "diffusion_pytorch_model.safetensors.index.json",
        *(f"diffusion_pytorch_model-0000{n}-of-00004.safetensors" for n in range(1, 5)),
        "Wan2.1_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "google/umt5-xxl/tokenizer.json",
        "wav2vec2-large-xlsr-53-english/config.json",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_the_embedded_model_is_whole() -> None:
    files = find_checkpoint(TINY)
    assert files.missing == ()
    assert files.dit == TINY / "diffusion_pytorch_model.safetensors"
    assert files.tokenizer is None  # it reads bytes
    assert files.speech == TINY / "wav2vec2-tiny"
    assert files.text_config == TINY / "t5_config.json"


def test_the_published_layout_is_found(official: Path) -> None:
    files = find_checkpoint(official)
    assert files.dit == official / "diffusion_pytorch_model.safetensors.index.json"
    assert files.vae == official / "Wan2.1_VAE.pth"
    assert files.text == official / "models_t5_umt5-xxl-enc-bf16.pth"
    assert files.tokenizer == official / "google" / "umt5-xxl"
    assert files.vae_config is None


def test_every_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(tmp_path)
    for text in PARTS.values():
        assert text in str(caught.value)
    assert find_checkpoint(tmp_path, need=()).missing == tuple(PARTS)


def test_only_the_needed_parts_are_required(official: Path) -> None:
    (official / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    assert find_checkpoint(official, need=("dit", "vae")).missing == ("text",)
    with pytest.raises(CheckpointError, match="models_t5"):
        find_checkpoint(official)


def test_shards_without_their_index(official: Path) -> None:
    (official / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"found 4 files.*index\.json"):
        find_checkpoint(official)


def test_two_files_for_one_part(official: Path) -> None:
    (official / "models_t5_other.pth").touch()
    with pytest.raises(CheckpointError, match="leave only the one to use"):
        find_checkpoint(official)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        find_checkpoint(tmp_path / "nowhere")
