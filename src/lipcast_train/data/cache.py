"""Clips as the transformer takes them, encoded once: latents, voice features, prompt; on the disk, bounded.

Input: a pool of clips and the finished encoders. Output: `EncodedClip`, from memory or from a file. The
folder belongs to one pair of encoders: `identity` names them, and other files are removed. What finds no room
in the folder, or in memory, is encoded or read again: clips are asked for at random, so the first ones are as
good as any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipcast.models.speech import SpeechEncoder
from lipcast.models.upload import as_video
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import EncoderState
from lipcast.weights.disk import make_directory
from lipcast.weights.files import open_tensors
from lipcast.weights.writer import write_tensors
from lipcast_train.data.clips import Clip
from lipcast_train.data.pool import ClipPool, pixel_weights
from lipcast_train.networks.voices import encode_voice

STILL_LATENTS = 3
"""Latents of the portrait at rest before the clip begins, as the decoder is primed with."""
_KEY = "lipcast_train"


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """`still_CFHW`: the portrait at rest; `weights_HW`: weights of the latents in a loss."""

    latents_CFHW: Tensor
    still_CFHW: Tensor
    features_LEV: Tensor
    weights_HW: Tensor
    prompt: str


@torch.no_grad()
def encode_clip(
    clip: Clip,
    vae: VideoVAE,
    speech: SpeechEncoder,
    *,
    device: torch.device,
    still_latents: int = STILL_LATENTS,
) -> EncodedClip:
    """Encode a clip as the continuation of its portrait at rest; memory is that of one latent's frames."""
    state = EncoderState()
    groups = _groups(clip, still_latents, vae.config.temporal_factor)
    latents = torch.cat(
        [vae.encode_chunk(as_video(group, device), state)[0].cpu() for group in groups],
        dim=1,
    )
    wave_N = torch.from_numpy(clip.wave_N).to(device)
    features = encode_voice(speech, wave_N, len(clip.frames_THWC))
    weights = functional.avg_pool2d(pixel_weights(clip)[None], vae.config.spatial_factor)[0]
    split = [still_latents, latents.shape[1] - still_latents]
    still_CFHW, latents_CFHW = latents.split(split, dim=1)
    return EncodedClip(latents_CFHW, still_CFHW, features.cpu(), weights, clip.prompt)


def _groups(clip: Clip, still_latents: int, size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of each latent: of the portrait at rest, the first of one frame; then of the clip."""
    yield clip.portrait_HWC[None]
    for _ in range(still_latents - 1):
        yield np.repeat(clip.portrait_HWC[None], size, axis=0)
    for first in range(0, len(clip.frames_THWC) - size + 1, size):
        yield clip.frames_THWC[first : first + size]


class LatentCache:
    """Encoded clips in a folder, of which this process writes at most `max_bytes`, and in as much memory."""

    def __init__(
        self,
        folder: Path,
        pool: ClipPool,
        vae: VideoVAE,
        speech: SpeechEncoder,
        *,
        identity: str,
        device: torch.device,
        max_bytes: int,
        still_latents: int = STILL_LATENTS,
    ) -> None:
        """`still_latents`: those of the portrait before a clip; all motion latents, where they differ."""
        self._folder, self._device, self._count = folder, device, len(pool)
        self._origin: tuple[ClipPool, VideoVAE, SpeechEncoder] | None = (pool, vae, speech)
        self._identity = identity
        self._still_latents = still_latents
        self._kept: dict[int, EncodedClip] = {}
        make_directory(folder)
        for path in folder.glob("*.safetensors"):
            if not path.name.startswith(f"{identity}-"):
                path.unlink(missing_ok=True)
        own = (path.stat().st_size for path in folder.glob("*.safetensors"))
        self._room_on_disk, self._room_in_memory = max_bytes - sum(own), max_bytes

    def __len__(self) -> int:
        return self._count

    def drop_encoders(self) -> None:
        """Let go of the pool's frames and of the encoders, after every clip has found room."""
        self._origin = None

    def clip(self, index: int) -> EncodedClip:
        """Return a clip, encoded now if it is not there."""
        if index in self._kept:
            return self._kept[index]
        path = self._folder / f"{self._identity}-{index:06d}.safetensors"
        clip = _read(path) if path.exists() else self._encoded(index, path)
        size = _size(clip)
        if size <= self._room_in_memory:
            self._kept[index] = clip
            self._room_in_memory -= size
        return clip

    def _encoded(self, index: int, path: Path) -> EncodedClip:
        """Return a clip that is encoded now, and written if there is room."""
        assert self._origin is not None, f"clip {index} was not encoded before the encoders went"
        pool, vae, speech = self._origin
        clip = encode_clip(
            pool.clip(index), vae, speech,
            device=self._device, still_latents=self._still_latents,
        )  # fmt: skip
        size = _size(clip)
        if size <= self._room_on_disk:
            self._room_on_disk -= size
            metadata = {_KEY: json.dumps({"prompt": clip.prompt})}
            write_tensors(path, _tensors(clip), metadata=metadata)
        return clip


def _size(clip: EncodedClip) -> int:
    return sum(tensor.nbytes for tensor in _tensors(clip).values())


def _tensors(clip: EncodedClip) -> dict[str, Tensor]:
    return {
        "latents": clip.latents_CFHW,
        "still": clip.still_CFHW,
        "features": clip.features_LEV,
        "weights": clip.weights_HW,
    }


def _read(path: Path) -> EncodedClip:
    source = open_tensors(path)
    return EncodedClip(
        source.read("latents"),
        source.read("still"),
        source.read("features"),
        source.read("weights"),
        prompt=json.loads(source.metadata[_KEY])["prompt"],
    )
