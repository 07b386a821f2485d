"""Small weight files that the tests of this room share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lipcast.weights.bundle import open_transformer
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.files import open_tensors
from lipcast.weights.load import without_memory
from lipcast.weights.source import TensorInfo, TensorSource
from synthetic import SMALL, write_synthetic

from .packs import TEXT, VAE, Tensors

TINY = Path(__file__).parents[2] / "src" / "lipcast" / "assets" / "tiny"


class ToyBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)


class ToyModel(nn.Module):
    """A stand-in with the traits that matter: blocks by number, an embedding, a buffer."""

    scale: Tensor

    def __init__(self, dim: int = 8, num_blocks: int = 3) -> None:
        super().__init__()
        self.text_embedding = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(ToyBlock(dim) for _ in range(num_blocks))
        self.register_buffer("scale", torch.ones(1, dtype=torch.float32))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic checkpoint, written once."""
    directory = tmp_path_factory.mktemp("source")
    write_synthetic(directory, SMALL, speech=TINY / "wav2vec2-tiny")
    return directory


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests need no durability, and a busy disk can hold an fsync for minutes."""
    monkeypatch.setattr("lipcast.weights.disk.os.fsync", lambda _: None)


@pytest.fixture
def toy() -> ToyModel:
    torch.manual_seed(0)
    return ToyModel()


@pytest.fixture
def meta_toy() -> ToyModel:
    with without_memory():
        return ToyModel()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors as tmp_path/name and return the path."""

    def write(
        tensors: Mapping[str, Tensor],
        name: str = "model.safetensors",
        metadata: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
        else:
            torch.save(dict(tensors), path)
        return path

    return write


@pytest.fixture(scope="session")
def official_infos() -> dict[str, list[TensorInfo]]:
    """Names and shapes of the published 14B files, by component, in their order."""
    infos: dict[str, list[TensorInfo]] = {}
    for line in (Path(__file__).parent / "official-names.tsv").read_text().splitlines()[1:]:
        component, name, shape = line.split("\t")
        sizes = tuple(int(size) for size in shape.split("x"))
        infos.setdefault(component, []).append(TensorInfo(name, sizes, torch.bfloat16))
    return infos


@pytest.fixture(scope="module")
def dit(original: Path) -> Tensors:
    return dict(open_tensors(original / "diffusion_pytorch_model.safetensors.index.json"))


@pytest.fixture(scope="module")
def text(original: Path) -> Tensors:
    return dict(open_tensors(original / TEXT))


@pytest.fixture(scope="module")
def vae(original: Path) -> Tensors:
    return dict(open_tensors(original / VAE))


@pytest.fixture(scope="module")
def base(original: Path) -> TensorSource:
    return open_transformer(find_checkpoint(original))
