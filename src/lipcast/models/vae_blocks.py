"""The layers of the causal video autoencoder, and the state that a stream of chunks carries.

Duty: causal convolutions that see the past of their own input, and the blocks made of them.
Inputs and outputs: activations x_BCTHW, B = 1; a `StreamState` where a layer looks back in time.
Invariants: modules hold parameters only; what a layer remembers between chunks is in the state,
under the layer's own name; the result does not depend on how a stream is cut into chunks.

Shape suffixes: B batch, C channels, T frames, H height, W width, N = H·W.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention


@dataclass
class StreamState:
    """Newest input frames of every causal layer, by layer name.

    An empty state is the beginning of a video. A layer without an entry has seen nothing yet.
    """

    caches: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches.values())


class DecoderState(StreamState):
    """The state of one video being decoded."""


class EncoderState(StreamState):
    """The state of one video being encoded."""


class EncoderNetwork(Protocol):
    """Pictures to moments of the posterior; `Encoder`, or the same laid out for a machine."""

    def __call__(self, x_BCTHW: Tensor, state: StreamState, /) -> Tensor: ...

    def encode_static(self, image_BCHW: Tensor, num_frames: int) -> Tensor:
        """Return the moments of a picture shown for `num_frames`."""
        ...


class DecoderNetwork(Protocol):
    """Latents to pictures; `Decoder`, or the same laid out otherwise."""

    def decode(self, latents: Sequence[Tensor], state: StreamState) -> list[Tensor]:
        """Return the pictures of each of the next latent frames."""
        ...

    def advance(self, z_BCTHW: Tensor, state: StreamState) -> None:
        """Move the state on past these latents, running what later pictures depend on."""
        ...


class RMSNorm(nn.Module):
    """x / ‖x‖₂ · sqrt(C) · gamma over the channels; `num_axes` axes (T,) H, W follow them."""

    def __init__(self, dim: int, num_axes: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = normalize(x, dim=1) * (self.scale * self.gamma)
        return normed


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution padded in space on both sides and in time in front only.

    In front of the first frame are zeros; in front of a later chunk, the frames before it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        _, height, width = kernel_size
        padding = (0, height // 2, width // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.name = ""

    @property
    def num_past(self) -> int:
        return self.kernel_size[0] - 1

    def no_past(self, x_BCTHW: Tensor) -> Tensor:
        """Return the zero frames in front of a video."""
        batch, channels, _, height, width = x_BCTHW.shape
        return x_BCTHW.new_zeros(batch, channels, self.num_past, height, width)

    def convolve(self, x_BCTHW: Tensor) -> Tensor:
        """Convolve without putting frames in front."""
        return super().forward(x_BCTHW)

    def forward(  # type: ignore[override]  # it needs the state, which Conv3d does not
        self, x_BCTHW: Tensor, state: StreamState
    ) -> Tensor:
        past = state.caches.get(self.name)
        if past is None:
            past = self.no_past(x_BCTHW)
        x_BCTHW = torch.cat([past, x_BCTHW], dim=2)
        state.caches[self.name] = x_BCTHW[:, :, -self.num_past :].clone()
        return self.convolve(x_BCTHW)


class ResidualBlock(nn.Module):
    """Two times norm, SiLU, causal 3×3×3 convolution; beside them the input."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        # The empty layer at index 5 keeps the official numbering (a dropout while training).
        self.residual = nn.Sequential(
            RMSNorm(in_dim, 3),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, (3, 3, 3)),
            RMSNorm(out_dim, 3),
            nn.SiLU(),
            nn.Identity(),
            CausalConv3d(out_dim, out_dim, (3, 3, 3)),
        )
        self.shortcut = nn.Identity() if in_dim == out_dim else nn.Conv3d(in_dim, out_dim, 1)

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        out: Tensor = run_layers(self.residual, x_BCTHW, state) + self.shortcut(x_BCTHW)
        return out


class FrameAttention(nn.Module):
    """Single-head self-attention between the pixels of one frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_TCHW = frames_of(x_BCTHW)
        qkv_T1NC = self.to_qkv(self.norm(x_TCHW)).flatten(2).transpose(1, 2).unsqueeze(1)
        q, k, v = qkv_T1NC.chunk(3, dim=-1)
        mixed_TNC = scaled_dot_product_attention(q, k, v).squeeze(1)
        mixed_TCHW = mixed_TNC.transpose(1, 2).reshape(x_TCHW.shape)
        return x_BCTHW + video_of(self.proj(mixed_TCHW))


class Downsample(nn.Module):
    """Half the height and width; with `temporal`, half the frames, except the first frame."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        if temporal:
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))
        self.temporal = temporal

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        x_BCTHW = video_of(self.resample(frames_of(x_BCTHW)))
        if not self.temporal:
            return x_BCTHW
        past = state.caches.get(self.time_conv.name)
        state.caches[self.time_conv.name] = x_BCTHW[:, :, -1:].clone()
        if past is None:
            return x_BCTHW
        return self.time_conv.convolve(torch.cat([past, x_BCTHW], dim=2))


class Upsample(nn.Module):
    """Twice the height and width, half the channels; with `temporal`, twice the frames,
    except the first latent frame of a video.

    The second latent frame sees zeros in its past, not the first one (as the model was trained).
    """

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest-exact"),
            nn.Conv2d(dim, dim // 2, 3, padding=1),
        )
        if temporal:
            self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1))
        self.temporal = temporal

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        if self.temporal:
            x_BCTHW = self._double_frames(x_BCTHW, state)
        return video_of(self.resample(frames_of(x_BCTHW)))

    def _double_frames(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        if self.time_conv.name not in state.caches:
            state.caches[self.time_conv.name] = self.time_conv.no_past(x_BCTHW)
            return x_BCTHW
        pairs_BCTHW: Tensor = self.time_conv(x_BCTHW, state)
        batch, _, num_frames, height, width = pairs_BCTHW.shape
        pairs = pairs_BCTHW.view(batch, 2, -1, num_frames, height, width)
        return pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def run_layers(layers: Iterable[nn.Module], x_BCTHW: Tensor, state: StreamState) -> Tensor:
    """Apply layers in order; those that look back in time get the state."""
    for layer in layers:
        looks_back = isinstance(layer, CausalConv3d | ResidualBlock | Downsample | Upsample)
        x_BCTHW = layer(x_BCTHW, state) if looks_back else layer(x_BCTHW)
    return x_BCTHW


def name_causal_layers(root: nn.Module) -> None:
    """Tell every causal convolution its own name, the key of its memory in a state."""
    for name, module in root.named_modules():
        if isinstance(module, CausalConv3d):
            module.name = name


def frames_of(x_BCTHW: Tensor) -> Tensor:
    """Reorder [1, C, T, H, W] to [T, C, H, W]."""
    return x_BCTHW.squeeze(0).transpose(0, 1)


def video_of(x_TCHW: Tensor) -> Tensor:
    """Reorder [T, C, H, W] to [1, C, T, H, W]."""
    return x_TCHW.transpose(0, 1).unsqueeze(0)
