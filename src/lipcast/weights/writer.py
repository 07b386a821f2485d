"""Writing safetensors files one tensor at a time.

Input: headers known beforehand and the tensors in the same order. Output: the file, complete or
not there at all, and the hash of its bytes. The header is written first, from shapes alone; then
data is appended, so that memory holds one tensor. The bytes are a function of the tensors only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lipcast.errors import OutputError
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
    with _replacing(path) as file:
        for chunk in _file_bytes(infos, read, metadata):
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _file_bytes(
    infos: Sequence[TensorInfo], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    yield header_bytes(infos, metadata)
    for info in infos:
        tensor = read(info.name)
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype), info.name
        yield from _tensor_chunks(tensor)


def header_bytes(infos: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header of a file with these tensors, padded to 8 bytes."""
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
    """The format's name of a dtype."""
    return next(name for name, known in _DTYPE_NAMES if known == dtype)


def _tensor_chunks(tensor: Tensor) -> Iterator[memoryview]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    for first in range(0, len(raw), CHUNK_BYTES):
        yield raw[first : first + CHUNK_BYTES]


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that becomes `path` when everything is on the disk."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


TEMPORARY = ".part"
"""Suffix of a file that is being written."""


def write_text(path: Path, text: str) -> None:
    """Write a small text file, complete or not at all; raises OutputError."""
    with _replacing(path) as file:
        file.write(text.encode())


def output_error(path: Path, error: OSError) -> OutputError:
    """The user's words for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{path}: the disk is full; free some space and run the same command again, "
            "finished files are kept"
        )
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); choose another directory"
    )


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
