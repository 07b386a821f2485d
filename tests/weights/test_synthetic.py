"""Synthetic checkpoints: the published names and shapes, and a small one that really loads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from lipcast.models.text import text_name
from lipcast.weights.bundle import load_bundle, load_text_encoder
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.files import open_tensors
from lipcast.weights.source import TensorInfo
from lipcast.weights.synthetic import PUBLISHED, SMALL, configs_of_size, write_synthetic

from .conftest import TINY

SPEECH = TINY / "wav2vec2-tiny"
COMPONENTS = {"dit": "dit", "vae": "vae", "umt5-xxl": "text"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The true 14B shapes over empty space."""
    directory = tmp_path_factory.mktemp("published")
    write_synthetic(directory, PUBLISHED, speech=SPEECH, sparse=True)
    return directory


@pytest.mark.parametrize("component", COMPONENTS)
def test_names_and_shapes_are_the_published_ones(
    published: Path, official_infos: dict[str, list[TensorInfo]], component: str
) -> None:
    path = getattr(find_checkpoint(published), COMPONENTS[component])
    found = {info.name: info.shape for info in open_tensors(path).infos.values()}
    assert found == {info.name: info.shape for info in official_infos[component]}


def test_the_published_size(published: Path) -> None:
    files = find_checkpoint(published)
    assert files.dit is not None
    dit = open_tensors(files.dit)
    assert len(dit.infos) == 1260
    assert sum(info.num_elements for info in dit.infos.values()) == 16_295_755_609
    assert dit.num_bytes == 32_591_511_218
    shards = [f"diffusion_pytorch_model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert [path.name for path in dit.files[1:]] == shards
    assert sum(path.stat().st_size for path in dit.files) > 32e9
    assert sum(512 * path.stat().st_blocks for path in dit.files) < 4e6  # empty space is free
    assert not dit.read("blocks.39.self_attn.q.weight").any()


def test_published_configs_need_no_extra_files(published: Path) -> None:
    files = find_checkpoint(published)
    assert files.vae_config is None
    assert files.text_config is None
    assert files.tokenizer is not None


def test_a_small_one_loads_and_encodes(tmp_path: Path) -> None:
    write_synthetic(tmp_path, SMALL, speech=SPEECH)
    bundle = load_bundle(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    assert bundle.dit.config == SMALL.dit
    assert bundle.files.vae is not None
    assert bundle.files.vae.suffix == ".pth"
    assert len(open_tensors(bundle.files.dit or Path()).files) == 5  # index and 4 shards
    context = load_text_encoder(bundle.files).encode("a calm man")
    assert context.shape == (11, SMALL.text.dim)
    assert context.isfinite().all()


def test_the_same_seed_is_the_same_checkpoint(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(tmp_path / name, SMALL, speech=SPEECH, seed=seed)
    first, second, third = (
        (tmp_path / name / "diffusion_pytorch_model-00001-of-00004.safetensors").read_bytes()
        for name in "abc"
    )
    assert first == second != third


def test_no_two_tensors_are_alike(tmp_path: Path) -> None:
    write_synthetic(tmp_path, SMALL, speech=SPEECH)
    source = open_tensors(find_checkpoint(tmp_path).dit or Path())
    beginnings = Counter(tuple(t.flatten()[:4].tolist()) for _, t in source)
    assert beginnings.most_common(1)[0][1] == 1


@pytest.mark.parametrize("wanted_bytes", [10_000_000, 300_000_000])
def test_configs_of_a_size(wanted_bytes: int) -> None:
    from lipcast.planning.tensors import dit_tensors, num_parameters

    configs = configs_of_size(wanted_bytes, dim=256)
    got = 2 * num_parameters(dit_tensors(configs.dit))
    assert wanted_bytes <= got < wanted_bytes * 1.2


def test_text_names_are_those_the_encoder_knows(
    official_infos: dict[str, list[TensorInfo]],
) -> None:
    renamed = {text_name(info.name) for info in official_infos["umt5-xxl"]}
    assert len(renamed) == 242
