"""One `.safetensors` file: its header, and its tensors read or mapped one at a time.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON
header {name: {dtype, shape, data_offsets}}, then the data without gaps.
Read here and not by the library, which names neither the expected nor the found size of a file cut
short, and keeps every page resident that was read through one open file: after the eight tensors of
a 400 MB file, read one by one, 404 MB stayed resident with the library and 4 MB with plain reads.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.weights.disk import parse_json
from lipcast.weights.source import TensorInfo, TensorSource

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit; a longer header means that the file is something else."""


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Header of one file; `offsets` are bytes from its start."""

    infos: dict[str, TensorInfo]
    offsets: dict[str, int]
    metadata: dict[str, str]


class SafetensorsSource(TensorSource):
    """The tensors of one file. `mapped`: views of the mapped file instead of copies."""

    def __init__(self, path: Path, *, mapped: bool = False) -> None:
        header = read_header(path)
        self.path, self.files = path, (path,)
        self.infos, self.metadata = header.infos, header.metadata
        self._offsets = header.offsets
        self._bytes = _map_file(path) if mapped else None

    def read(self, name: str) -> Tensor:
        info, offset = self.infos[name], self._offsets[name]
        if self._bytes is None:
            raw = read_bytes(self.path, offset, info.num_bytes)
        else:
            raw = self._bytes[offset : offset + info.num_bytes]
            if offset % info.dtype.itemsize:  # a foreign file may place data unaligned
                raw = raw.clone()
        return raw.view(info.dtype).view(info.shape)


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of `path`: every tensor lies inside the file and has its size."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= header_bytes <= MAX_HEADER_BYTES:
                raise CheckpointError(
                    _not_safetensors(path, "the length of its header is impossible")
                )
            text = file.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) < header_bytes:
        raise CheckpointError(truncated(path, 8 + header_bytes, file_bytes))
    return _parse_header(path, text, file_bytes)


def _parse_header(path: Path, text: bytes, file_bytes: int) -> SafetensorsHeader:
    try:
        entries: dict[str, Any] = parse_json(text)
        metadata = {str(k): str(v) for k, v in entries.pop("__metadata__", {}).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(_not_safetensors(path, "its header is not a JSON object")) from error
    start = 8 + len(text)
    infos, offsets, end = {}, {}, start
    in_file_order = sorted(entries.items(), key=lambda item: _first_offset(path, item[0], item[1]))
    for name, entry in in_file_order:
        info, first, last = _parse_entry(path, name, entry)
        infos[name], offsets[name] = info, start + first
        end = max(end, start + last)
    if end > file_bytes:
        raise CheckpointError(truncated(path, end, file_bytes))
    return SafetensorsHeader(infos, offsets, metadata)


def _first_offset(path: Path, name: str, entry: Any) -> int:
    try:
        (first, _), _, _ = entry["data_offsets"], entry["dtype"], entry["shape"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            _not_safetensors(path, f"the entry of {name} is incomplete")
        ) from error
    if type(first) is not int:
        raise CheckpointError(_not_safetensors(path, f"no place is given for {name}"))
    return first


def _parse_entry(path: Path, name: str, entry: dict[str, Any]) -> tuple[TensorInfo, int, int]:
    """Return the header of one tensor and the first and last byte of its data."""
    dtype_name, (first, last), shape = entry["dtype"], entry["data_offsets"], entry["shape"]
    if type(last) is not int or not _is_shape(shape):
        raise CheckpointError(_not_safetensors(path, f"the entry of {name} is incomplete"))
    if dtype_name not in DTYPES:
        known = ", ".join(DTYPES)
        raise CheckpointError(
            f"{path}: {name} has dtype {dtype_name}, which is not read; expected one of {known}. "
            "Take the file in another precision"
        )
    info = TensorInfo(name, tuple(shape), DTYPES[dtype_name])
    if first < 0 or last - first != info.num_bytes:
        raise CheckpointError(
            f"{path}: {name} of shape {info.shape} needs {info.num_bytes} bytes, its header gives "
            f"it {last - first}; the file is damaged, download it again"
        )
    return info, first, last


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)


def _not_safetensors(path: Path, why: str) -> str:
    return f"{path}: expected a safetensors file, but {why}; download it again"


def truncated(path: Path, expected_bytes: int, found_bytes: int) -> str:
    """Return what to say of a file that is shorter than its header promises."""
    return (
        f"{path}: expected {expected_bytes:,} bytes, the file has {found_bytes:,}; "
        "it was cut short, download it again"
    )


def _map_file(path: Path) -> Tensor:
    """All bytes of the file as one tensor that the system fills page by page when they are read."""
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def read_bytes(path: Path, offset: int, num_bytes: int) -> Tensor:
    """A piece of a file as a tensor of bytes; raises CheckpointError."""
    raw = torch.empty(num_bytes, dtype=torch.uint8)
    view = raw.numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while view and (count := file.readinto(view)):  # one read gives 2 GiB at most
                view = view[count:]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if view:
        raise CheckpointError(truncated(path, offset + num_bytes, offset + num_bytes - len(view)))
    return raw
