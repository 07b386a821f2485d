"""Quantise a stream of tensors; the table says what is not quantised.

Input: a source of plain tensors (adapters already merged) and a precision. Output: a source that
gives each linear layer's parts in the place of its weight, and everything else in a 16-bit float.
Large layers are quantised by rows, so that no float32 copy of a whole one is made. Converting
measures the error of every layer on the way; loading does not, and quantises on the target device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcast.config.precision import StoredPrecision
from lipcast.errors import CheckpointError
from lipcast.models.quant_formats import quantise_rows, quantise_rows_fp4
from lipcast.weights.schemes import PLAIN_DTYPES, SCHEMES, Parts, Scheme
from lipcast.weights.source import QWEIGHT, TensorInfo, TensorSource

PIECE_ELEMENTS = 1 << 18
"""Weights quantised at once, in whole rows: keeps temporary float32 copies at 1 MB each."""
GPU_PIECE_ELEMENTS = 1 << 22
"""The same on a GPU, where small pieces would be all launches: 16 MB each."""
NUM_PROBES = 16
"""Random activations per layer for the measured output error."""

KEPT_LAYERS = (
    (r"text_embedding\.", "computed once per prompt; its error would be in every text token"),
    (
        r"time_embedding\.",
        "computed once per step; its error would scale every layer's activations",
    ),
    (r"time_projection\.", "makes shift, scale and gate of every block; computed once per step"),
    (r"head\.", "the last layer: nothing after it averages its error out of the velocity"),
    (r"casual_audio_encoder\.", "computed once per block in float32; it moves the lips"),
    (r"trainable_cond_mask\.", "a table of three rows, looked up and not multiplied"),
    (r"token_embedding\.", "a table of the text encoder's tokens, looked up and not multiplied"),
    (r".*\bpos_embedding\.", "a table of attention biases, looked up and not multiplied"),
)
"""Matrices that stay in high precision (the beginning of the layer's name, the reason)."""
NOT_A_MATRIX = "norms, biases, modulations and convolutions: small, and not a matrix product"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Relative errors of one quantised layer (root of the sum of squares).

    `output_error`: of the layer's output on normally distributed activations; for fp8 and nvfp4 these are
    quantised, too, as the fast path does.
    """

    layer: str
    weight_error: float
    output_error: float


def kept_because(info: TensorInfo) -> str | None:
    """Return why a tensor stays in high precision; None: it is quantised."""
    if len(info.shape) != 2 or not info.name.endswith(".weight"):
        return NOT_A_MATRIX
    return next((why for start, why in KEPT_LAYERS if re.match(start, info.name)), None)


def quantised(
    base: TensorSource, precision: StoredPrecision, *, device: torch.device | None = None
) -> TensorSource:
    """Return `base` in `precision`, quantised or only cast.

    With `device`, layers are quantised there, their parts stay there, and no error is measured;
    without, on the CPU, and the source reports every layer's error. The parts are the same.
    Raises CheckpointError if `base` is quantised already.
    """
    for info in base.infos.values():
        if info.name.endswith(f".{QWEIGHT}"):
            raise CheckpointError(
                f"{base.path}: {info.name} is quantised already; convert the original checkpoint"
            )
    if precision in PLAIN_DTYPES:
        return CastSource(base, PLAIN_DTYPES[precision])
    return QuantisedSource(base, SCHEMES[precision], device=device)


class CastSource(TensorSource):
    """The same tensors with every float in one dtype."""

    def __init__(self, base: TensorSource, dtype: torch.dtype) -> None:
        self._base = base
        self.path, self.files, self.metadata = base.path, base.files, base.metadata
        self.infos = {
            name: replace(info, dtype=dtype) if info.dtype.is_floating_point else info
            for name, info in base.infos.items()
        }

    def read(self, name: str) -> Tensor:
        return self._base.read(name).to(self.infos[name].dtype)


class QuantisedSource(TensorSource):
    """The same layers with their weights in parts; `reports` holds the layers read so far.

    Reading one part quantises its layer; the other parts wait until they are read or until
    another layer is. With `device` there are no reports.
    """

    def __init__(
        self, base: TensorSource, scheme: Scheme, *, device: torch.device | None = None
    ) -> None:
        self._base, self._scheme, self._device = base, scheme, device
        self.path, self.files, self.metadata = base.path, base.files, base.metadata
        self.reports: dict[str, LayerReport] = {}
        self._layer, self._waiting = "", Parts()
        self._layer_of_part: dict[str, str] = {}
        self.infos = {i.name: i for info in base.infos.values() for i in self._part_infos(info)}

    def _part_infos(self, info: TensorInfo) -> Iterator[TensorInfo]:
        if not self._is_quantised(info):
            yield replace(info, dtype=_kept_dtype(info.dtype))
            return
        layer = info.name.removesuffix(".weight")
        for part, (shape, dtype) in self._scheme.part_shapes(*info.shape).items():
            self._layer_of_part[f"{layer}.{part}"] = layer
            yield TensorInfo(f"{layer}.{part}", shape, dtype)

    def _is_quantised(self, info: TensorInfo) -> bool:
        return kept_because(info) is None and self._scheme.fits(info.shape[1])

    def read(self, name: str) -> Tensor:
        if name not in self._layer_of_part:
            return self._base.read(name).to(self.infos[name].dtype)
        layer, part = self._layer_of_part[name], name.rpartition(".")[2]
        if self._layer != layer or part not in self._waiting:
            self._waiting = self._quantise(layer)
            self._layer = layer
        return self._waiting.pop(part)

    def _quantise(self, layer: str) -> Parts:
        weight = self._base.read(f"{layer}.weight")
        if self._device is not None:
            return quantise_weight(weight, self._scheme, device=self._device)
        parts, self.reports[layer] = quantise_layer(layer, weight, self._scheme)
        return parts


def _kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return bf16 for floats of more than 16 bits, as the published weights are."""
    return torch.bfloat16 if dtype in (torch.float32, torch.float64) else dtype


def quantise_weight(weight: Tensor, scheme: Scheme, *, device: torch.device) -> Parts:
    """Return the parts of one weight [out, in] of any float dtype, made on `device`."""
    shared = {name: part.to(device) for name, part in scheme.shared(weight).items()}
    parts = _empty_parts(weight, scheme, device) | shared
    limit = PIECE_ELEMENTS if device.type == "cpu" else GPU_PIECE_ELEMENTS
    for rows in row_slices(*weight.shape, limit=limit):
        exact = weight[rows].to(device).float()
        for name, values in scheme.quantise(exact, shared).items():
            if name not in shared:
                parts[name][rows] = values
    return parts


def _empty_parts(weight: Tensor, scheme: Scheme, device: torch.device) -> Parts:
    return {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, (shape, dtype) in scheme.part_shapes(*weight.shape).items()
    }


def quantise_layer(layer: str, weight: Tensor, scheme: Scheme) -> tuple[Parts, LayerReport]:
    """Return the parts of one weight [out, in] of any float dtype, and their error."""
    shared = scheme.shared(weight)
    parts = _empty_parts(weight, scheme, weight.device) | shared
    probes = _probes(weight.shape[1]).to(weight.device)
    rounded = _round_trip(probes, scheme)
    sums = torch.zeros(4, dtype=torch.float64, device=weight.device)
    for rows in row_slices(*weight.shape):
        exact = weight[rows].float()
        piece = scheme.quantise(exact, shared)
        for name, values in piece.items():
            if name not in shared:
                parts[name][rows] = values
        restored = scheme.dequantise(piece, torch.float32)
        output = probes @ exact.t()
        sums += torch.stack(
            [
                _energy(restored.sub(exact)), _energy(exact),
                _energy(rounded @ restored.t() - output), _energy(output),
            ]
        )  # fmt: skip
    weight_error, output_error = (sums[0::2] / sums[1::2].clamp(min=1e-30)).sqrt().tolist()
    return parts, LayerReport(layer, round(weight_error, 6), round(output_error, 6))


def row_slices(num_rows: int, row_elements: int, *, limit: int | None = None) -> Iterator[slice]:
    """Cut a matrix into pieces of whole rows with at most `limit` (PIECE_ELEMENTS), or one row."""
    step = max(1, (limit or PIECE_ELEMENTS) // max(1, row_elements))
    return (slice(first, first + step) for first in range(0, num_rows, step))


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(dtype=torch.float64)


def _probes(num_in: int) -> Tensor:
    return torch.randn(NUM_PROBES, num_in, generator=torch.Generator().manual_seed(0))


def _round_trip(x: Tensor, scheme: Scheme) -> Tensor:
    """Return activations as the direct product of a scheme rounds them, if it has one."""
    if scheme.precision == "nvfp4":
        return quantise_rows_fp4(x).restore()
    return quantise_rows(x).restore() if scheme.precision == "fp8" else x
