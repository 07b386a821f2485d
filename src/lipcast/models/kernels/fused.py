"""The operations between the matrix products as fused kernels: one pass over memory each.

The same methods as `plain.Kernels`. Sums and norms are float32 and results are rounded where the plain
twin rounds; what differs is the order of sums, so that numbers before rounding agree to some units of
float32, and rounded ones are the same or neighbours.

Keys and values are attended where they lie, in whatever precision the ring stores them, by Triton's kernel;
or by a back end that gives a log-sum-exp, which on Hopper and data-centre Blackwell is cuDNN and faster.
That attends to a ring of its own precision part by part, and one kernel merges the parts; keys and values of
another precision are first laid side by side by one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lipcast.config.gpu_options import KernelName
from lipcast.models.attention import KeyValue, prefers_cudnn
from lipcast.models.attention_backends import AttentionBackend
from lipcast.models.kernels import operators as _operators
from lipcast.models.kernels import stored_linear as _products
from lipcast.models.kernels.plain import Affine, Kernels, Modulation, Remembered, RowFormat
from lipcast.models.kv_codec import PlainCodec
from lipcast.models.layers import QueryKeyNorms, RMSNorm
from lipcast.models.quant_formats import Fp4Rows, QuantisedRows, Rows, StoredWeight, tensor_scale
from lipcast.models.rope import RotaryTable
from lipcast.planning.hardware import Capability

_ops = torch.ops.lipcast
assert _operators and _products


class FusedKernels(Kernels):
    """The operations in Triton.

    `in_place`: whether Triton's kernel attends; None: where that is expected to be faster. `attention`:
    what computes attention otherwise; `merges`: to the parts of a plain ring and of the sink, without
    laying them side by side.
    """

    name: KernelName = "triton"
    norms_when_rotating = True
    joins_products = True

    def __init__(
        self,
        capability: Capability | None,
        *,
        in_place: bool | None = None,
        attention: AttentionBackend | None = None,
        merges: bool = True,
    ) -> None:
        super().__init__(attention)
        self._capability, self._in_place, self._merges = capability, in_place, merges

    def add(self, x_GSD: Tensor, branch_GSD: Tensor, gate_G1D: Tensor | None = None) -> Tensor:
        total: Tensor = _ops.add(x_GSD.contiguous(), branch_GSD.contiguous(), gate_G1D)
        return total

    def normalise(self, x_GSD: Tensor, norm: Affine | Modulation, form: RowFormat) -> Rows:
        rows = _ops.normalise(x_GSD.contiguous(), *_affine(norm), form.dtype, form.fp8)
        return _rows(rows, form)

    def add_normalise(
        self,
        x_GSD: Tensor,
        branch_GSD: Tensor,
        gate_G1D: Tensor | None,
        norm: Affine | Modulation,
        form: RowFormat,
    ) -> tuple[Tensor, Rows]:
        total, *rows = _ops.add_normalise(
            x_GSD.contiguous(),
            branch_GSD.contiguous(),
            gate_G1D,
            *_affine(norm),
            form.dtype,
            form.fp8,
        )
        return total, _rows(rows, form)

    def linear(self, x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor:
        if not _products.has_whole_groups(weight):
            return super().linear(x, weight, bias)
        product: Tensor = _ops.stored_linear(
            x.contiguous(), weight.numbers, weight.scale, weight.minimum, bias
        )
        return product

    def gelu(self, x: Tensor, form: RowFormat) -> Rows:
        if not form.fp8:
            return self.rows(functional.gelu(x, approximate="tanh"), form)
        return _rows(_ops.quantise_rows(x.contiguous(), True), form)

    def rows(self, x: Tensor, form: RowFormat) -> Rows:
        if form.fp4:
            return _fp4_rows(x)
        return _rows(_ops.quantise_rows(x.contiguous(), False), form) if form.fp8 else x

    def rms_norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        normed: Tensor = _ops.rms_norm(x.contiguous(), norm.weight, norm.eps)
        return normed

    def rotate_and_write(
        self,
        q_TNd: Tensor,
        k_TNd: Tensor,
        v_TNd: Tensor,
        norms: QueryKeyNorms | None,
        rotary: RotaryTable,
        into: Remembered,
    ) -> Tensor:
        q_TNd, k_TNd, v_TNd = _rows_alike(q_TNd, k_TNd, v_TNd)
        weights: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0)
        if norms is not None:
            weights = norms.queries.weight, norms.keys.weight, norms.queries.eps
        frames = into.ring.num_frames(k_TNd)
        per_frame = k_TNd.shape[0] // frames
        out_TNd = q_TNd.new_empty(q_TNd.shape)
        for run, planes in into.ring.writable(into.layer, into.next_frame - frames, frames):
            some = slice(run.start * per_frame, run.stop * per_frame)
            new = (x[some] for x in (q_TNd, k_TNd, v_TNd))
            table = rotary.cos_TP[some], rotary.sin_TP[some]
            _ops.rotate_and_write(*new, *weights, *table, out_TNd[some], planes.keys, planes.values)
        return out_TNd

    def attend(self, q_TNd: Tensor, remembered: Remembered) -> Tensor:
        if self.attends_in_place:
            attended: Tensor = _ops.attend_segments(q_TNd, *_segments(remembered))
            return attended
        codec = remembered.ring.codec
        is_plain = isinstance(codec, PlainCodec) and codec.dtype == q_TNd.dtype
        if self.attention is not None and self._merges and is_plain:
            return self._attend_parts(q_TNd, remembered)
        return super().attend(q_TNd, remembered)

    def _attend_parts(self, q_TNd: Tensor, remembered: Remembered) -> Tensor:
        """Attend to the ring, to the reference and to the motion apart, and merge what comes out."""
        (keys,), (values,), ref_keys, motion_keys, sink_values = _segments(remembered)
        num_ref = ref_keys.shape[0]
        parts = (
            (keys.flatten(0, 1), values.flatten(0, 1)),
            (ref_keys, sink_values[:num_ref]),
            (motion_keys, sink_values[num_ref:]),
        )
        made = [self._part(q_TNd, k_TNd, v_TNd) for k_TNd, v_TNd in parts if len(k_TNd)]
        merged: Tensor = _ops.merge_parts(
            *([x.contiguous() for x in each] for each in zip(*made, strict=True))
        )
        return merged

    def joined(self, like_TNd: Tensor, remembered: Remembered) -> KeyValue:
        k_TNd, v_TNd = _ops.join_keys_values(*_segments(remembered), like_TNd.dtype)
        return k_TNd, v_TNd

    @property
    def attends_in_place(self) -> bool:
        """Whether attention reads ring and sink where they lie."""
        if self._in_place is not None:
            return self._in_place
        return not prefers_cudnn(self._capability)


def _rows_alike(*each_TNd: Tensor) -> tuple[Tensor, ...]:
    """Return tensors whose rows are contiguous, with one stride from row to row."""
    first = each_TNd[0]
    contiguous = first.stride()[1:] == (first.shape[2], 1)
    if contiguous and all(x.stride() == first.stride() for x in each_TNd):
        return each_TNd
    return tuple(x.contiguous() for x in each_TNd)


def _affine(norm: Affine | Modulation) -> tuple[Tensor, Tensor, bool, float]:
    """Weight, bias, whether the weight counts from 1, and epsilon."""
    if isinstance(norm, Affine):
        return norm.weight_D, norm.bias_D, False, norm.eps
    return norm.scale_G1D, norm.shift_G1D, True, norm.eps


def _rows(made: Sequence[Tensor], form: RowFormat) -> Rows:
    numbers, scale = made
    if form.fp4:
        return _fp4_rows(numbers)
    return QuantisedRows(numbers, scale, form.dtype) if form.fp8 else numbers


def _fp4_rows(x: Tensor) -> Fp4Rows:
    of_all = tensor_scale(x)
    numbers, scale = _ops.quantise_fp4(x.contiguous(), of_all)
    return Fp4Rows(numbers, scale, of_all, x.dtype)


def _segments(
    remembered: Remembered,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Planes of keys and of values of the ring; keys of the reference, of the motion; their values."""
    ring = remembered.ring.filled(remembered.layer, remembered.next_frame)
    sink = remembered.sink.planes(remembered.layer)
    return ring.keys, ring.values, sink.ref_keys_SNd, sink.motion_keys_MNd, sink.values_TNd
