"""Write safetensors files one tensor at a time.

Input: headers known beforehand and the tensors in the same order. Output: the file, complete or
not there at all, and the hash of its bytes. The header is written first, from shapes alone; then
data is appended, so that memory holds one tensor. The bytes are a function of the tensors only.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lipcast.weights.disk import replacing
from lipcast.weights.safetensors_file import DTYPES
from lipcast.weights.source import TensorInfo

CHUNK_BYTES = 32 << 20
_DTYPE_NAMES = tuple(DTYPES.items())


def write_safetensors(
    path: Path,
    infos: Sequence[TensorInfo],
    read: Callable[[str], Tensor],
    *,
    metadata: Mapping[str, str],
    advance: Callable[[int], None] = lambda _: None,
) -> str:
    """Write `path` and return the sha256 of the file; `advance` is told the bytes just written.

    Raises OutputError if it cannot be written; then nothing is left under `path`.
    """
    digest = hashlib.sha256()
    with replacing(path) as file:
        for chunk in _file_bytes(infos, read, metadata):
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> str:
    """Write tensors of any device that are all there; otherwise as `write_safetensors`."""
    infos = [TensorInfo(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    return write_safetensors(
        path, infos, lambda name: tensors[name].detach().cpu(), metadata=metadata
    )


def _file_bytes(
    infos: Sequence[TensorInfo], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    yield header_bytes(infos, metadata)
    for info in infos:
        tensor = read(info.name)
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype), info.name
        yield from _tensor_chunks(tensor)


def header_bytes(infos: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return the length and JSON header of a file with these tensors, padded to 8 bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for info in infos:
        header[info.name] = {
            "dtype": dtype_name(info.dtype),
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.num_bytes],
        }
        offset += info.num_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def dtype_name(dtype: torch.dtype) -> str:
    """Return the format's name of a dtype."""
    return next(name for name, known in _DTYPE_NAMES if known == dtype)


def _tensor_chunks(tensor: Tensor) -> Iterator[memoryview]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    for first in range(0, len(raw), CHUNK_BYTES):
        yield raw[first : first + CHUNK_BYTES]
