"""Weights of one byte that other programs store with their scales, read as bf16.

Input: a source whose 8-bit weights lie beside `scale_weight` (ComfyUI, kijai, musubi), `weight_scale`
(ComfyUI since, lightx2v) or no scale at all (a plain cast). Output: the same tensors in bf16, the
scales multiplied in while they are read, some rows at a time. What only speeds up an 8-bit product
(`input_scale`) and marks without numbers are left out. Formats that are not read are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.weights.disk import parse_json
from lipcast.weights.quant import row_slices
from lipcast.weights.source import QWEIGHT, TensorSource

_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
"""Names of the factor that a stored weight is multiplied with, beside the weight."""
_MARKS = re.compile(r"(^|\.)(scaled_fp8|input_scale|scale_input|comfy_quant|spiece_model)$")
_READ_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8")
_HARMLESS = ("format", "full_precision_matrix_mult", "orig_dtype", "orig_shape")
_UNREAD = (
    ("nvfp4 (4-bit floats)", r"\.weight_scale_2$"),
    ("bitsandbytes", r"\.weight\.(absmax|quant_map|quant_state\..*)$"),
    ("GPTQ or AWQ", r"\.qzeros$"),
    ("Nunchaku (SVDQuant)", r"\.(wscales|wtscale|smooth_factor)$"),
    ("quanto", r"\.weight\._(data|scale|shift)$"),
    ("8-bit integers with zero points", r"\.weight_zero_point$"),
)


def unscaled(base: TensorSource) -> TensorSource:
    """Return `base` with 8-bit weights as bf16; `base` itself where it has none.

    Raises CheckpointError for formats that are not read.
    """
    _check_formats(base)
    narrow = [name for name, info in base.infos.items() if is_narrow(base, name, info.dtype)]
    marks = [name for name in base.infos if _MARKS.search(name)]
    return UnscaledSource(base) if narrow or marks else base


def is_narrow(base: TensorSource, name: str, dtype: torch.dtype) -> bool:
    """Return whether a tensor is a weight in 8 bits that is not in a format of Lipcast's own."""
    if dtype.itemsize != 1 or name.endswith(f".{QWEIGHT}") or _MARKS.search(name):
        return False
    return dtype.is_floating_point or _scale_name(base, name) is not None


def _scale_name(base: TensorSource, name: str) -> str | None:
    owner, _, leaf = name.rpartition(".")
    if leaf != "weight":
        return None
    return next((s for scale in _SCALES if (s := f"{owner}.{scale}") in base.infos), None)


class UnscaledSource(TensorSource):
    """The tensors of `base` without its scales and marks; what they scale is bf16."""

    def __init__(self, base: TensorSource) -> None:
        self.path, self.files, self.metadata = base.path, base.files, base.metadata
        self._base = base
        self._scales = {
            name: _scale_name(base, name)
            for name, info in base.infos.items()
            if is_narrow(base, name, info.dtype)
        }
        dropped = {scale for scale in self._scales.values() if scale}
        self.infos = {
            name: replace(info, dtype=torch.bfloat16) if name in self._scales else info
            for name, info in base.infos.items()
            if name not in dropped and not _MARKS.search(name)
        }

    def read(self, name: str) -> Tensor:
        stored = self._base.read(name)
        if name not in self._scales:
            return stored
        scale = self._scales[name]
        if not stored.numel():
            return stored.to(torch.bfloat16)
        rows = stored.reshape(stored.shape[0] if stored.dim() else 1, -1)
        grid = torch.ones(1, 1) if scale is None else _grid(self._base.read(scale).float())
        step_rows, step_columns = (
            -(-size // max(1, cells)) for size, cells in zip(rows.shape, grid.shape, strict=True)
        )
        if grid.shape != (-(-rows.shape[0] // step_rows), -(-rows.shape[1] // step_columns)):
            raise CheckpointError(
                f"{self.path}: {name} of shape {list(stored.shape)} has scales on a grid of "
                f"{list(grid.shape)}, which do not divide it; download the file again, or take "
                "the one in bf16"
            )
        values = torch.empty(rows.shape, dtype=torch.bfloat16)
        for piece in row_slices(*rows.shape):
            exact = _as_float(rows[piece])
            factors = grid[torch.arange(piece.start, piece.start + len(exact)) // step_rows]
            if factors.shape[1] > 1:
                factors = factors.repeat_interleave(step_columns, dim=1)[:, : rows.shape[1]]
            values[piece] = exact.mul_(factors)
        return values.view(stored.shape)


def _as_float(stored: Tensor) -> Tensor:
    """Return 8-bit numbers as float32; a table is twice as fast as converting fp8."""
    if not stored.dtype.is_floating_point:
        return stored.float()
    table = torch.arange(256, dtype=torch.uint8).view(stored.dtype).float()
    return table.index_select(0, stored.view(torch.uint8).flatten().int()).view(stored.shape)


def _grid(scale: Tensor) -> Tensor:
    """Return scales as a matrix: of the whole weight, by row, by blocks of a row, by tiles."""
    if scale.dim() < 2:
        return scale.reshape(-1, 1)
    return scale.flatten(1) if scale.dim() > 2 else scale


def _check_formats(base: TensorSource) -> None:
    for label, pattern in _UNREAD:
        name = next((name for name in base.infos if re.search(pattern, name)), None)
        if name is not None:
            raise CheckpointError(_not_read(base, f"{label}, as {name} shows"))
    for name, setting in _settings(base):
        notes = setting if isinstance(setting, dict) else {"format": setting}
        extra = [key for key, value in notes.items() if value and key not in _HARMLESS]
        if notes.get("format") not in _READ_FORMATS or extra:
            found = ", ".join(str(word) for word in (notes.get("format"), *extra))
            raise CheckpointError(_not_read(base, f"{found} ({name})"))


def _settings(base: TensorSource) -> Iterator[tuple[str, object]]:
    """Yield what ComfyUI notes of each layer: beside the weight, or in the file's metadata."""
    texts = {
        name: bytes(base.read(name).flatten().tolist())
        for name, info in base.infos.items()
        if name.endswith(".comfy_quant") and info.dtype == torch.uint8
    }
    for name, text in texts.items():
        yield name, _parsed(base, name, text)
    if "_quantization_metadata" in base.metadata:
        name = "_quantization_metadata"
        notes = _parsed(base, name, base.metadata[name])
        layers = notes.get("layers") if isinstance(notes, dict) else None
        yield from (layers if isinstance(layers, dict) else {}).items()


def _parsed(base: TensorSource, name: str, text: str | bytes) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"{base.path}: {name} says how weights are stored, but is no JSON ({error}); "
            "download the file again"
        ) from error


def _not_read(base: TensorSource, found: str) -> str:
    return (
        f"{base.path}: weights are stored as {found}, which is not read; take the file in bf16, "
        "fp16 or fp8 (scaled or not), or a GGUF"
    )
