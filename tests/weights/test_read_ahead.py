"""Reading ahead changes no tensor, holds few of them, and ends its thread."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lipcast.config.precision import StoredPrecision
from lipcast.errors import CheckpointError
from lipcast.lab.fake_cuda import DEVICE, fake_cuda
from lipcast.weights.bundle import open_transformer
from lipcast.weights.checkpoint import MODEL_PARTS, checkpoint_dir, find_checkpoint
from lipcast.weights.quant import quantised
from lipcast.weights.read_ahead import DEPTH, ReadAhead
from lipcast.weights.schemes import SCHEMES
from lipcast.weights.source import TensorInfo, TensorSource

NAMES = [f"blocks.{layer}.{part}" for layer in range(6) for part in ("q.weight", "q.bias")]


class Tensors(TensorSource):
    """Tensors in memory that note who reads them; `broken` cannot be read."""

    def __init__(self, broken: str = "") -> None:
        self.path, self.files, self.metadata = Path("x"), (), {}
        shapes = {name: (64, 128) if name.endswith("weight") else (64,) for name in NAMES}
        self.tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        self.infos = {n: TensorInfo(n, tuple(t.shape), t.dtype) for n, t in self.tensors.items()}
        self.broken, self.read_names, self.readers = broken, list[str](), set[str]()
        self._busy = threading.Lock()

    def read(self, name: str) -> Tensor:
        assert self._busy.acquire(blocking=False), "a source serves one at a time"
        try:
            if name == self.broken:
                raise CheckpointError(f"{name} is broken")
            self.read_names.append(name)
            self.readers.add(threading.current_thread().name)
            return self.tensors[name]
        finally:
            self._busy.release()


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("lipcast-read-ahead")]


def test_every_tensor_is_read_once_in_order_by_another_thread() -> None:
    base = Tensors()
    source = ReadAhead(base)
    for number, (name, tensor) in enumerate(source):
        assert tensor is base.tensors[name]
        assert len(base.read_names) <= number + 1 + DEPTH
    assert base.read_names == NAMES and threading.current_thread().name not in base.readers
    assert not readers()
    assert source.read(NAMES[3]) is base.tensors[NAMES[3]], "it may be read again afterwards"
    assert not readers()


@pytest.mark.parametrize("seed", range(5))
def test_any_order_gives_the_same_tensors(seed: int) -> None:
    """With gaps, backwards, and again."""
    base, draw = Tensors(), random.Random(seed)
    source = ReadAhead(base)
    for name in draw.choices(NAMES, k=30) + NAMES[::3] + NAMES[seed:]:
        assert source.read(name) is base.tensors[name]
    source.close()
    source.close()
    assert not readers()


def test_an_error_is_raised_where_its_tensor_is_asked_for() -> None:
    source = ReadAhead(Tensors(broken=NAMES[2]))
    source.read(NAMES[0])
    source.read(NAMES[1])
    with pytest.raises(CheckpointError, match=r"blocks\.1\.q\.weight is broken"):
        source.read(NAMES[2])
    source.close()


@pytest.mark.parametrize("precision", sorted(SCHEMES))
def test_weights_are_quantised_to_the_same_bits(precision: StoredPrecision) -> None:
    base, device = Tensors(), torch.device("cpu")
    plain, ahead = (quantised(s, precision, device=device) for s in (base, ReadAhead(base)))
    for (name, one), (other_name, other) in zip(plain, ahead, strict=True):
        assert name == other_name and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    assert not readers()


@pytest.mark.parametrize("precision", sorted(SCHEMES))
def test_a_gpu_gets_its_parts_on_the_device(precision: StoredPrecision) -> None:
    """The embedded model on a fake GPU: parts of weights are made there, and what is kept is read ahead."""
    files = find_checkpoint(checkpoint_dir("tiny"), need=MODEL_PARTS)
    with fake_cuda():
        source = open_transformer(files, precision=precision, device=DEVICE)
        parts = [(name, source.read(name)) for name in source.infos if name.startswith("blocks.0.")]
        for name, part in parts:
            info = source.infos[name]
            assert (tuple(part.shape), part.dtype) == (info.shape, info.dtype)
            is_part = f"{name.rpartition('.')[0]}.qweight" in source.infos and "bias" not in name
            assert part.device == (DEVICE if is_part else torch.device("cpu"))
    assert isinstance(source._base, ReadAhead)  # type: ignore[attr-defined]
    source._base.close()  # type: ignore[attr-defined]
