"""Decode clean latents to pixels as soon as they are finished.

Input: latents block by block, in order. Output: uint8 frames, perhaps later: a GPU decodes on a stream
of its own while the next tick is computed. State: the decoder's temporal caches, whose size does not
depend on the length of the video.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipcast.engine.conditioning import ReferenceLatents
from lipcast.memory.device import decode_stream
from lipcast.models.vae_blocks import DecoderState


class StreamingDecoder(Protocol):
    """A streaming decoder: the VAE's, or one with the same interface."""

    def new_decoder_state(self) -> DecoderState: ...

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None: ...

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor: ...


class PendingFrames(Protocol):
    """Frames that are being decoded: uint8 RGB [4 F, height, width, 3]."""

    @property
    def is_ready(self) -> bool:
        """Return whether `collect` would return at once."""

    def collect(self) -> NDArray[np.uint8]:
        """Wait for the frames and return them. Raises the error of their decoding. Called once."""

    @property
    def decode_s(self) -> float:
        """Seconds that decoding took; known once the frames are collected."""


class DecodeQueue:
    """Blocks that are being decoded, in order."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, PendingFrames]] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, block: int, pending: PendingFrames) -> None:
        """Add the next block."""
        self._pending.append((block, pending))

    def take(self, *, wait: bool) -> Iterator[tuple[int, NDArray[np.uint8], float]]:
        """Yield the blocks that are ready, or with `wait` all: number, frames, seconds of decoding."""
        while self._pending and (wait or self._pending[0][1].is_ready):
            block, pending = self._pending.popleft()
            frames = pending.collect()
            yield block, frames, pending.decode_s

    def clear(self) -> None:
        """Drop the blocks that are left."""
        self._pending.clear()


class FrameDecoder:
    """One video's decoder."""

    def __init__(
        self,
        vae: StreamingDecoder,
        reference: ReferenceLatents,
        *,
        resume_CFHW: Tensor | None = None,
        output_size: tuple[int, int] | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """`resume_CFHW`: clean latents that the video goes on from; they follow on the still portrait,
        as they did if they are the video's first.
        `output_size` (height, width): of the frames, where they shall have another than the latents'.
        `stream`: a GPU's, which all its decoders share; by default one of its own.
        """
        self._vae = vae
        self._output_size = output_size
        self.state = vae.new_decoder_state()
        history_CFHW = reference.history_CFHW
        if resume_CFHW is not None:
            history_CFHW = torch.cat((history_CFHW, resume_CFHW), dim=1)
        device = history_CFHW.device
        self._stream = (stream or decode_stream(device)) if device.type == "cuda" else None
        with self._aside(history_CFHW):
            vae.prime(history_CFHW[None], self.state)

    def change(
        self, vae: StreamingDecoder, convert: Callable[[DecoderState], DecoderState]
    ) -> None:
        """Continue with another form of the same decoder; `convert` converts the state."""
        if self._stream is not None:
            self._stream.synchronize()
        self._vae, self.state = vae, convert(self.state)

    def release(self) -> None:
        """Free the state. The decoder must not be used afterwards."""
        if self._stream is not None:
            self._stream.synchronize()
        self.state.caches = {}

    def submit(self, latent_CFHW: Tensor) -> PendingFrames:
        """Begin to decode the next latents; on a CPU, decode them before returning.

        After running out of memory the state is as before, and the call may be repeated.
        """
        before = dict(self.state.caches)
        try:
            with self._aside(latent_CFHW):
                return self._decode(latent_CFHW)
        except BaseException:
            self.state.caches = before
            raise

    def _decode(self, latent_CFHW: Tensor) -> PendingFrames:
        began_s = time.perf_counter()
        began = None if self._stream is None else self._stream.record_event(_timing_event())
        video_CTHW = self._vae.decode_chunk(latent_CFHW[None], self.state)[0]
        frames_THWC = _resized(video_CTHW, self._output_size).permute(1, 2, 3, 0)
        pixels = (frames_THWC.float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        if self._stream is None or began is None:
            frames = pixels.cpu().numpy()
            return _FramesHere(frames, time.perf_counter() - began_s)
        host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(pixels, non_blocking=True)
        return _FramesComing(host, began, self._stream.record_event(_timing_event()))

    @contextmanager
    def _aside(self, input_CFHW: Tensor) -> Iterator[None]:
        """Enter the decoder's own stream, after the work that produces the input."""
        with torch.inference_mode():
            if self._stream is None:
                yield
                return
            self._stream.wait_stream(torch.cuda.current_stream(input_CFHW.device))
            # Its memory must not be given away before the decoder has read it.
            input_CFHW.record_stream(self._stream)
            with torch.cuda.stream(self._stream):
                yield


def _resized(video_CTHW: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return the frames in another size: for a video that continued smaller than it began."""
    if size is None or tuple(video_CTHW.shape[2:]) == size:
        return video_CTHW
    pictures_TCHW = video_CTHW.transpose(0, 1).float()
    bigger_TCHW = functional.interpolate(pictures_TCHW, size, mode="bicubic", antialias=True)
    return bigger_TCHW.transpose(0, 1)


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


@dataclass(frozen=True, slots=True)
class _FramesHere:
    frames: NDArray[np.uint8]
    decode_s: float
    is_ready: bool = True

    def collect(self) -> NDArray[np.uint8]:
        return self.frames


@dataclass(frozen=True, slots=True)
class _FramesComing:
    """`host` is pinned and being written until `written`."""

    host: Tensor
    began: torch.cuda.Event
    written: torch.cuda.Event

    @property
    def is_ready(self) -> bool:
        return bool(self.written.query())

    @property
    def decode_s(self) -> float:
        return float(self.began.elapsed_time(self.written)) / 1000

    def collect(self) -> NDArray[np.uint8]:
        self.written.synchronize()
        # A copy: pinned memory is scarce, and whoever gets the frames may keep them.
        frames: NDArray[np.uint8] = self.host.numpy().copy()
        return frames
