"""One `.gguf` file: a transformer or a UMT5 encoder whose weights are in ggml's block formats.

The header is read here (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), the blocks are
decoded by the package `gguf`, some rows at a time. Tensors come out under the official names and in
PyTorch's order of axes; decoded blocks are bf16, plain floats keep their dtype.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.weights.safetensors_file import MAX_HEADER_BYTES, read_bytes, truncated
from lipcast.weights.source import TensorInfo, TensorSource

MAGIC = b"GGUF"
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""ggml has four axes at most; writers of larger convolutions note the true shape under this key."""
_DIT_PREFIX = re.compile(r"^(model\.)?diffusion_model\.")


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A ggml type: its number and name there, weights per block, bytes per block, dtype here."""

    name: str
    block_elements: int
    block_bytes: int
    dtype: torch.dtype = torch.bfloat16


FORMATS: Mapping[int, BlockFormat] = MappingProxyType(
    {
        0: BlockFormat("F32", 1, 4, torch.float32),
        1: BlockFormat("F16", 1, 2, torch.float16),
        30: BlockFormat("BF16", 1, 2, torch.bfloat16),
        2: BlockFormat("Q4_0", 32, 18),
        3: BlockFormat("Q4_1", 32, 20),
        6: BlockFormat("Q5_0", 32, 22),
        7: BlockFormat("Q5_1", 32, 24),
        8: BlockFormat("Q8_0", 32, 34),
        10: BlockFormat("Q2_K", 256, 84),
        11: BlockFormat("Q3_K", 256, 110),
        12: BlockFormat("Q4_K", 256, 144),
        13: BlockFormat("Q5_K", 256, 176),
        14: BlockFormat("Q6_K", 256, 210),
        16: BlockFormat("IQ2_XXS", 256, 66),
        17: BlockFormat("IQ2_XS", 256, 74),
        18: BlockFormat("IQ3_XXS", 256, 98),
        19: BlockFormat("IQ1_S", 256, 50),
        20: BlockFormat("IQ4_NL", 32, 18),
        21: BlockFormat("IQ3_S", 256, 110),
        22: BlockFormat("IQ2_S", 256, 82),
        23: BlockFormat("IQ4_XS", 256, 136),
        29: BlockFormat("IQ1_M", 256, 56),
        34: BlockFormat("TQ1_0", 256, 54),
        35: BlockFormat("TQ2_0", 256, 66),
        39: BlockFormat("MXFP4", 32, 17),
    }
)
_UNREAD = MappingProxyType(
    {4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
     28: "F64", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 40: "NVFP4", 41: "Q1_0"}
)  # fmt: skip
"""Names of the ggml types that are not read."""
_T5_OUTER = MappingProxyType(
    {"token_embd.weight": "token_embedding.weight", "enc.output_norm.weight": "norm.weight"}
)
_T5_INNER = MappingProxyType(
    {
        "attn_norm": "norm1", "attn_q": "attn.q", "attn_k": "attn.k", "attn_v": "attn.v",
        "attn_o": "attn.o", "attn_rel_b": "pos_embedding.embedding", "ffn_norm": "norm2",
        "ffn_gate": "ffn.gate.0", "ffn_up": "ffn.fc1", "ffn_down": "ffn.fc2",
    }
)  # fmt: skip
_SCALARS = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
_STRING, _ARRAY = 8, 9
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class _Stored:
    """Place of one tensor's blocks; `shape` is the shape in ggml's memory, outermost first."""

    format: BlockFormat
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) // self.format.block_elements * self.format.block_bytes


class GgufSource(TensorSource):
    """The tensors of one `.gguf` file."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        fields, stored = _read_header(path)
        architecture = str(fields.get("general.architecture", ""))
        self.metadata = {"architecture": architecture}
        self._stored = {_official_name(name, architecture): t for name, t in stored.items()}
        shapes = {
            _official_name(key.removeprefix(_ORIGINAL_SHAPE), architecture): _shape(
                path, key, value
            )
            for key, value in fields.items()
            if key.startswith(_ORIGINAL_SHAPE)
        }
        self.infos = {
            name: TensorInfo(name, shapes.get(name, t.shape), t.format.dtype)
            for name, t in self._stored.items()
        }
        for name, info in self.infos.items():
            if info.num_elements != prod(self._stored[name].shape):
                raise CheckpointError(damaged(path, f"{name} has two sizes"))

    def read(self, name: str) -> Tensor:
        info, stored = self.infos[name], self._stored[name]
        raw = read_bytes(self.path, stored.offset, stored.num_bytes)
        if stored.format.block_elements == 1:
            return raw.view(info.dtype).view(info.shape)
        return _decode(self.path, raw, stored).view(info.shape)


def _shape(path: Path, key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(size) is int and size >= 0 for size in value):
        raise CheckpointError(damaged(path, f"{key} is no shape"))
    return value


def _decode(path: Path, raw: Tensor, stored: _Stored) -> Tensor:
    """Return the weights of all blocks in a row, decoded a few MB at a time."""
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise CheckpointError(
            f"{path}: decoding {stored.format.name} needs the package gguf; "
            "install it with: pip install 'lipcast[gguf]'"
        ) from error
    kind = GGMLQuantizationType[stored.format.name]
    blocks = raw.view(-1, stored.format.block_bytes)
    values = torch.empty(len(blocks), stored.format.block_elements, dtype=stored.format.dtype)
    step = _PIECE_BYTES // stored.format.block_bytes
    for first in range(0, len(blocks), step):
        rows = slice(first, first + step)
        values[rows] = torch.from_numpy(dequantize(blocks[rows].numpy(), kind))
    return values


def _official_name(name: str, architecture: str) -> str:
    """Encoders of llama.cpp have names of their own; transformers keep the official ones."""
    if architecture not in ("t5", "t5encoder"):
        return _DIT_PREFIX.sub("", name)
    if name in _T5_OUTER:
        return _T5_OUTER[name]
    match = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in _T5_INNER:
        return name
    return f"blocks.{match[1]}.{_T5_INNER[match[2]]}.weight"


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, _Stored]]:
    """Return the metadata and tensors; raises CheckpointError for a file that is damaged or too new."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            magic, version, num_tensors, num_fields = _unpack(file, "<4sIQQ")
            if magic != MAGIC or version not in (2, 3):
                raise CheckpointError(
                    f"{path}: expected GGUF version 2 or 3, got {magic!r} version {version}"
                )
            fields = dict(_read_field(file) for _ in range(num_fields))
            tensors = [_read_tensor(file) for _ in range(num_tensors)]
            end = file.tell()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (struct.error, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(damaged(path, "its header is cut short")) from error
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(damaged(path, f"its alignment is {alignment!r}"))
    start = -(-end // alignment) * alignment
    stored = {}
    for name, number, shape, offset in tensors:
        stored[name] = _Stored(_format(path, name, number, shape), shape, start + offset)
        last = start + offset + stored[name].num_bytes
        if last > file_bytes:
            raise CheckpointError(truncated(path, last, file_bytes))
    return fields, stored


def damaged(path: Path, why: str) -> str:
    """Return what to say of a file that contradicts itself."""
    return f"{path}: the GGUF file is damaged ({why}); download it again"


def _format(path: Path, name: str, number: int, shape: tuple[int, ...]) -> BlockFormat:
    if number not in FORMATS:
        known = ", ".join(f.name for f in FORMATS.values())
        kind = _UNREAD.get(number, "unknown")
        raise CheckpointError(
            f"{path}: {name} has ggml type {number} ({kind}); "
            f"this is not read, take a file in one of {known}"
        )
    if (shape[-1] if shape else 1) % FORMATS[number].block_elements:
        raise CheckpointError(damaged(path, f"rows of {name} are no whole blocks"))
    return FORMATS[number]


def _read_tensor(file: BinaryIO) -> tuple[str, int, tuple[int, ...], int]:
    """(name, ggml type, shape with the outermost axis first, offset in the data)."""
    name = _read_string(file)
    (num_axes,) = _unpack(file, "<I")
    shape = _unpack(file, f"<{num_axes}Q")
    number, offset = _unpack(file, "<IQ")
    return name, number, tuple(reversed(shape)), offset


def _read_field(file: BinaryIO) -> tuple[str, Any]:
    name = _read_string(file)
    (kind,) = _unpack(file, "<I")
    return name, _read_value(file, kind)


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(file)
    if kind == _ARRAY:
        item_kind, count = _unpack(file, "<IQ")
        if item_kind in _SCALARS:
            return _unpack(file, f"<{count}{_SCALARS[item_kind]}")
        return tuple(_read_value(file, item_kind) for _ in range(count))
    (value,) = _unpack(file, f"<{_SCALARS[kind]}")
    return value


def _read_string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    (text,) = _unpack(file, f"<{length}s")
    return str(text, "utf-8")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    size = struct.calcsize(layout)
    if size > MAX_HEADER_BYTES:
        raise ValueError("longer than any header")
    return struct.unpack(layout, file.read(size))
