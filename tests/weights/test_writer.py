"""Writing safetensors: the library reads it back, failures leave nothing behind."""

from __future__ import annotations

import errno
import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lipcast.errors import OutputError
from lipcast.weights import writer
from lipcast.weights.disk import output_error, sha256_of, write_text
from lipcast.weights.safetensors_file import read_header
from lipcast.weights.shards import plan_shards
from lipcast.weights.source import TensorInfo
from lipcast.weights.writer import write_safetensors
from profiles import examples

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b.fp8": torch.ones(3, dtype=torch.float8_e4m3fn),
    "c": torch.tensor(4, dtype=torch.int64),
    "d": torch.zeros(0, 2),
    "ü": torch.ones(4, 4).t().bfloat16(),
}
INFOS = [TensorInfo(name, tuple(t.shape), t.dtype) for name, t in TENSORS.items()]


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path, told = tmp_path / "m.safetensors", []
    digest = write_safetensors(
        path, INFOS, TENSORS.__getitem__, metadata={"k": "v"}, advance=told.append
    )
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path)
    assert sum(told) == path.stat().st_size
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor.float(), TENSORS[name].float()), name
    assert read_header(path).metadata == {"k": "v"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]


def test_large_tensors_are_written_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 5)
    told: list[int] = []
    path = tmp_path / "m.safetensors"
    write_safetensors(path, INFOS, TENSORS.__getitem__, metadata={}, advance=told.append)
    assert max(told[1:]) == 5
    assert torch.equal(load_file(path)["a"], TENSORS["a"])


def test_a_failing_source_leaves_no_file(tmp_path: Path) -> None:
    def fail(name: str) -> torch.Tensor:
        raise KeyError(name)

    with pytest.raises(KeyError):
        write_safetensors(tmp_path / "m.safetensors", INFOS, fail, metadata={})
    assert not list(tmp_path.iterdir())


def test_unwritable_places(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(No such file"):
        write_text(tmp_path / "no" / "such" / "place", "x")


def test_a_full_disk_is_called_so() -> None:
    error = output_error(Path("out"), OSError(errno.ENOSPC, "No space left on device"))
    assert "disk is full" in str(error)


@settings(max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 50), max_size=30), limit=st.integers(1, 60))
def test_shards_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    infos = [TensorInfo(str(i), (size,), torch.uint8) for i, size in enumerate(sizes)]
    shards = plan_shards(infos, limit)
    assert [info for shard in shards for info in shard] == infos
    for shard in shards:
        assert sum(i.num_bytes for i in shard) <= limit or sum(i.num_bytes > 0 for i in shard) == 1
    for left, right in pairwise(shards):
        assert sum(i.num_bytes for i in left) + right[0].num_bytes > limit
