"""The causal 3-D video autoencoder of Wan 2.1: pictures to latents and back, as a stream.

Inputs: video_BCTHW in [-1, 1], T = 1 + 4n frames, H and W multiples of 8.
Outputs: latent_BCTHW, 1 + n frames of z_dim channels at 1/8 of the size, normalised by the
mean and standard deviation of the config; decoding is the way back, clamped to [-1, 1].
Invariants: B = 1; nothing is random (the latent is the mean of the posterior); the first
latent frame is one picture, every later one `temporal_factor` pictures; a video decoded in
chunks equals the video decoded at once, bit for bit.

Shape suffixes: B batch (1), C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lipcast.config.models import VAEConfig
from lipcast.models.vae_blocks import (
    CausalConv3d,
    DecoderNetwork,
    DecoderState,
    Downsample,
    EncoderNetwork,
    EncoderState,
    FrameAttention,
    ResidualBlock,
    RMSNorm,
    StreamState,
    Upsample,
    name_causal_layers,
    run_layers,
)
from lipcast.models.vae_receptive import Unit, latents_to_run, units_to_run
from lipcast.models.vae_static import encode_settling

RGB = 3


class VideoVAE(nn.Module):
    """Encoder, decoder and the two 1×1×1 convolutions between them and the latent."""

    encoder: EncoderNetwork
    decoder: DecoderNetwork

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        name_causal_layers(self)

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Encode video in [-1, 1] as normalised latents (fp32), 1 + (T - 1) // 4 frames.

        Frames beyond the last whole group of `temporal_factor` are ignored. Working memory is
        that of one group, whatever T is.
        """
        state = EncoderState()
        chunks = split_frames(video_BCTHW.to(self._dtype), self.config.temporal_factor)
        moments = [self.encoder(chunk, state) for chunk in chunks]
        return self._normalise(torch.cat(moments, dim=2))

    def encode_chunk(self, video_BCTHW: Tensor, state: EncoderState) -> Tensor:
        """Encode the next frames of the video that `state` has come to, as one latent; the state moves on.

        The first latent of a video is of one frame, any later one of `temporal_factor`.
        """
        return self._normalise(self.encoder(video_BCTHW.to(self._dtype), state))

    def encode_still(self, image_BCHW: Tensor, num_frames: int) -> Tensor:
        """Return the latents of a picture shown for `num_frames`: `encode` of the repeated picture.

        Cheaper than that, because a layer whose input stands still computes nothing new. The
        latents of fewer frames are the first latents of more frames.
        """
        group = self.config.temporal_factor
        num_used = 1 + (num_frames - 1) // group * group
        return self._normalise(self.encoder.encode_static(image_BCHW.to(self._dtype), num_used))

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode normalised latents to video in [-1, 1], 1 + 4 (T - 1) frames."""
        return self.decode_chunk(latent_BCTHW, self.new_decoder_state())

    def new_decoder_state(self) -> DecoderState:
        """Return the state at the beginning of a video; it lives where the first latents live."""
        return DecoderState()

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor:
        """Decode the next frames of the video that `state` has come to; the state moves on.

        The first latent frame of a video gives one picture, any later one `temporal_factor`.
        """
        # The library chooses its convolution kernel by the number of frames, and kernels round
        # differently. One latent at a time, from the first convolution on, every chunking runs
        # the same ones.
        entered = [self._enter(z) for z in latent_BCTHW.split(1, dim=2)]
        return torch.cat(self.decoder.decode(entered, state), dim=2).clamp_(-1.0, 1.0)

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None:
        """Move the state on past these latents; their pictures are not wanted.

        Cheaper than decoding them: the later layers see only the newest latents.
        """
        if latent_BCTHW.shape[2]:
            entered = [self._enter(z) for z in latent_BCTHW.split(1, dim=2)]
            self.decoder.advance(torch.cat(entered, dim=2), state)

    @property
    def _dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    def _normalise(self, moments_BCTHW: Tensor) -> Tensor:
        mean_BCTHW: Tensor = self.conv1(moments_BCTHW.to(self._dtype))[
            :, : self.config.z_dim
        ].float()
        mean, std = latent_statistics(self.config, mean_BCTHW.device)
        return (mean_BCTHW - mean) * (1.0 / std)

    def _enter(self, latent_BCTHW: Tensor) -> Tensor:
        """Return what the decoder takes for one latent frame, the same bits in any chunk."""
        # A slice of a chunk has other strides than a chunk of one, and strides choose kernels too.
        entered: Tensor = self.conv2(self._denormalise(latent_BCTHW).contiguous())
        return entered

    def _denormalise(self, latent_BCTHW: Tensor) -> Tensor:
        mean, std = latent_statistics(self.config, latent_BCTHW.device)
        return (latent_BCTHW.float() / (1.0 / std) + mean).to(self._dtype)


class Encoder(nn.Module):
    """Pictures to the 2·z_dim moments of the posterior, 1/8 of the size, 1/4 of the frames."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * mult for mult in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(RGB, dims[0], (3, 3, 3))
        self.downsamples = nn.Sequential(*encoder_stages(config, dims))
        self.middle = middle_layers(dims[-1])
        self.head = head_layers(dims[-1], 2 * config.z_dim)

    @property
    def layers(self) -> list[nn.Module]:
        return [self.conv1, *self.downsamples, *self.middle, *self.head]

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        return run_layers(self.layers, x_BCTHW, state)

    def encode_static(self, image_BCHW: Tensor, num_frames: int) -> Tensor:
        """Return the moments of a picture shown for `num_frames`."""
        return encode_settling(self.layers, image_BCHW, num_frames)


class Decoder(nn.Module):
    """Latents to pictures, the mirror of the encoder with one more block per stage."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * mult for mult in (*reversed(config.dim_mult), config.dim_mult[0])]
        self.conv1 = CausalConv3d(config.z_dim, dims[0], (3, 3, 3))
        self.middle = middle_layers(dims[0])
        self.upsamples = nn.Sequential(*decoder_stages(config))
        self.head = head_layers(dims[-1], RGB)

    @property
    def layers(self) -> list[nn.Module]:
        return [self.conv1, *self.middle, *self.upsamples, *self.head]

    def decode(self, latents: Sequence[Tensor], state: StreamState) -> list[Tensor]:
        """Return the pictures of each of the next latent frames."""
        return [run_layers(self.layers, z_BCTHW, state) for z_BCTHW in latents]

    def advance(self, z_BCTHW: Tensor, state: StreamState) -> None:
        """Move the state on past these latents, running what later pictures depend on."""
        latents, layers = z_BCTHW.split(1, dim=2), self.layers
        counts = latents_to_run(decoder_units(layers))
        for index, z in enumerate(latents):
            num_layers = units_to_run(counts, index, len(latents))
            run_layers(layers[:num_layers], z, state)


def decoder_units(layers: Sequence[nn.Module]) -> list[Unit]:
    """Return every layer's frames per latent and number of convolutions in time."""
    units, rate = [], 1
    for layer in layers:
        num_convs = sum(
            isinstance(part, CausalConv3d) and part.num_past > 0 for part in layer.modules()
        )
        units.append(Unit(rate, num_convs))
        rate *= 2 if isinstance(layer, Upsample) and layer.temporal else 1
    return units


def encoder_stages(config: VAEConfig, dims: list[int]) -> Iterator[nn.Module]:
    """Yield the residual blocks of each width, a downsampling between two widths."""
    for stage, out_dim in enumerate(dims[1:]):
        in_dim = dims[stage]
        for _ in range(config.num_res_blocks):
            yield ResidualBlock(in_dim, out_dim)
            in_dim = out_dim
        if stage < len(config.temporal_downsample):
            yield Downsample(out_dim, temporal=config.temporal_downsample[stage])


def decoder_stages(config: VAEConfig) -> Iterator[nn.Module]:
    """Yield the residual blocks of each width, an upsampling (which halves the width) between two."""
    in_dim = config.dim * config.dim_mult[-1]
    temporal_upsample = tuple(reversed(config.temporal_downsample))
    for stage, mult in enumerate(reversed(config.dim_mult)):
        out_dim = config.dim * mult
        for _ in range(config.num_res_blocks + 1):
            yield ResidualBlock(in_dim, out_dim)
            in_dim = out_dim
        if stage < len(temporal_upsample):
            yield Upsample(out_dim, temporal=temporal_upsample[stage])
            in_dim = out_dim // 2


def middle_layers(dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(dim, dim), FrameAttention(dim), ResidualBlock(dim, dim))


def head_layers(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(dim, 3), nn.SiLU(), CausalConv3d(dim, out_dim, (3, 3, 3)))


def split_frames(video_BCTHW: Tensor, group: int) -> list[Tensor]:
    """Split into the first frame and groups of `group` frames; what is left over is dropped."""
    starts = range(1, video_BCTHW.shape[2] - group + 1, group)
    return [video_BCTHW[:, :, :1], *(video_BCTHW[:, :, s : s + group] for s in starts)]


def latent_statistics(config: VAEConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of the latent channels, fp32 [C, 1, 1, 1].

    Made per call and kept nowhere: a buffer would be a tensor that no checkpoint holds.
    """
    both = torch.tensor((config.mean, config.std), dtype=torch.float32)
    # Not waiting: work on other streams is launched meanwhile.
    mean, std = both.to(device, non_blocking=True)[:, :, None, None, None]
    return mean, std
