"""The operations between the matrix products, in PyTorch's own operators.

Inputs: the float32 residual stream, branches and projections in the dtype of the linear layers, rings
and sinks. Outputs: the stream, and rows for the next linear layer: numbers, or fp8 with a scale per row or
NVFP4 where that layer multiplies those. The fused twin has the same methods (`fused.FusedKernels`).

Legend: G latent frames of all lanes, S tokens per latent frame, T tokens, D model width, N heads, d head
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcast.config.gpu_options import KernelName
from lipcast.models.attention import KeyValue, Part, attend
from lipcast.models.attention_backends import AttentionBackend
from lipcast.models.kv_ring import KVRing
from lipcast.models.layers import QueryKeyNorms, RMSNorm, layer_norm32
from lipcast.models.quant_formats import Rows, StoredWeight, quantise_rows, quantise_rows_fp4
from lipcast.models.rope import RotaryTable
from lipcast.models.sink import PlacedSink


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What a linear layer is fed with: numbers of `dtype`, in fp8 per row or in NVFP4 where it says so."""

    dtype: torch.dtype
    fp8: bool = False
    fp4: bool = False

    @classmethod
    def of(cls, *linears: nn.Module, dtype: torch.dtype) -> RowFormat:
        """Return the format that all these layers take."""
        formats = {getattr(linear, "multiplies", None) for linear in linears}
        return cls(dtype, fp8=formats == {"fp8"}, fp4=formats == {"nvfp4"})

    def rows(self, x: Tensor) -> Rows:
        """Return x in this format."""
        x = x.to(self.dtype)
        if self.fp4:
            return quantise_rows_fp4(x)
        return quantise_rows(x) if self.fp8 else x


@dataclass(frozen=True, slots=True)
class Affine:
    """A LayerNorm with learned weight and bias."""

    weight_D: Tensor
    bias_D: Tensor
    eps: float

    def apply(self, x_GSD: Tensor) -> Tensor:
        """Return the norm of x, computed in float32."""
        weight, bias = self.weight_D.float(), self.bias_D.float()
        return functional.layer_norm(x_GSD, weight.shape, weight, bias, self.eps)


@dataclass(frozen=True, slots=True)
class Modulation:
    """A LayerNorm moved by rows of every latent frame: norm * (1 + scale) + shift."""

    shift_G1D: Tensor
    scale_G1D: Tensor
    eps: float

    def apply(self, x_GSD: Tensor) -> Tensor:
        """Return the moved norm of x, computed in float32."""
        return layer_norm32(x_GSD, self.eps) * (1 + self.scale_G1D) + self.shift_G1D


@dataclass(frozen=True, slots=True)
class Remembered:
    """What one layer of a lane attends to: its ring up to `next_frame`, and its sink."""

    ring: KVRing
    sink: PlacedSink
    layer: int
    next_frame: int

    @property
    def num_ring(self) -> int:
        """Tokens of the ring."""
        return self.ring.num_tokens(self.next_frame)

    @property
    def num_tokens(self) -> int:
        return self.num_ring + self.sink.num_tokens


class Kernels:
    """The operations, one pass over memory per operator of PyTorch."""

    name: KernelName = "plain"
    norms_when_rotating = False
    """Whether queries and keys are normed where they are rotated; else right after their product."""

    joins_products = False
    """Whether queries, keys and values are one product where their weights lie side by side."""

    def __init__(self, attention: AttentionBackend | None = None) -> None:
        """`attention`: what computes self-attention; None: PyTorch's own choice."""
        self.attention = attention

    def add(self, x_GSD: Tensor, branch_GSD: Tensor, gate_G1D: Tensor | None = None) -> Tensor:
        """Return x plus a branch, times its gate."""
        return x_GSD + (branch_GSD if gate_G1D is None else gate_G1D * branch_GSD)

    def normalise(self, x_GSD: Tensor, norm: Affine | Modulation, form: RowFormat) -> Rows:
        """Return the norm of x as rows."""
        return form.rows(norm.apply(x_GSD))

    def add_normalise(
        self,
        x_GSD: Tensor,
        branch_GSD: Tensor,
        gate_G1D: Tensor | None,
        norm: Affine | Modulation,
        form: RowFormat,
    ) -> tuple[Tensor, Rows]:
        """Return x plus a gated branch, and the norm of the sum as rows."""
        x_GSD = self.add(x_GSD, branch_GSD, gate_G1D)
        return x_GSD, self.normalise(x_GSD, norm, form)

    def linear(self, x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor:
        """Return x times a stored weight, which is restored for it, plus a bias."""
        bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(x, weight.restore(x.dtype), bias)

    def gelu(self, x: Tensor, form: RowFormat) -> Rows:
        """Return GELU(x), by its tanh formula, as rows."""
        return form.rows(functional.gelu(x, approximate="tanh"))

    def rows(self, x: Tensor, form: RowFormat) -> Rows:
        """Return x as rows."""
        return form.rows(x)

    def rms_norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """Return the RMS norm of x over the last axis."""
        normed: Tensor = norm(x)
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
        """Norm and rotate queries and keys, write keys and values to the ring, return the queries.

        The tokens are the last ones to be remembered. Without `norms` queries and keys are normed
        already.
        """
        if norms is not None:
            q_TNd, k_TNd = norms(q_TNd, k_TNd)
        q_TNd, k_TNd = rotary.apply(q_TNd), rotary.apply(k_TNd)
        ring = into.ring
        first = into.next_frame - ring.num_frames(k_TNd)
        ring.write(into.layer, first, k_TNd, v_TNd)
        return q_TNd

    def attend(self, q_TNd: Tensor, remembered: Remembered) -> Tensor:
        """Attend to what a lane remembers."""
        k_TNd, v_TNd = self.joined(q_TNd, remembered)
        if self.attention is None:
            return attend(q_TNd, k_TNd, v_TNd)
        return self._part(q_TNd, k_TNd, v_TNd)[0]

    def _part(self, q_TNd: Tensor, k_TNd: Tensor, v_TNd: Tensor) -> Part:
        """Attend to some of the keys with the back end that was chosen."""
        assert self.attention is not None
        o_BTNd, lse_BNT = self.attention.attend_part(q_TNd[None], k_TNd[None], v_TNd[None])
        return o_BTNd[0], lse_BNT[0]

    def joined(self, like_TNd: Tensor, remembered: Remembered) -> KeyValue:
        """Return the keys and values of the ring, then of the sink, side by side."""
        num_ring, layer = remembered.num_ring, remembered.layer
        shape = (remembered.num_tokens, *like_TNd.shape[1:])
        k_TNd, v_TNd = like_TNd.new_empty(shape), like_TNd.new_empty(shape)
        remembered.ring.read_into(layer, remembered.next_frame, k_TNd[:num_ring], v_TNd[:num_ring])
        remembered.sink.read_into(layer, k_TNd[num_ring:], v_TNd[num_ring:])
        return k_TNd, v_TNd
