"""The tracks of a WebRTC connection: AV frames in, pictures and sound at the pace at which they are played.

Input: the AV frames of a live session. Output: one track of pictures and one of sound. Time is cut into slots
of 40 ms; a frame takes a slot, its picture and its sound get the slot's time. A slot without a frame is
silent and shows the last picture. What the encoder does not keep up with is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS
from lipcast.engine.live_types import AVFrame
from lipcast.media.rtc_frames import picture_frame, sound_frame
from lipcast.speech.sound import to_int16

PIECE_S = 0.5 / VIDEO_FPS
"""Length of a packet of sound, of which a slot has two."""
_MOST_WAITING = {"video": 3, "audio": 10}


class FrameTrack(MediaStreamTrack):
    """Hands frames to the sender of aiortc, which encodes them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.num_dropped = 0
        self._frames: deque[Any] = deque()
        self._has_frame = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        """Frames that were not encoded so far."""
        return len(self._frames)

    def put(self, frame: Any) -> None:
        """Append a frame."""
        if len(self._frames) >= _MOST_WAITING[self.kind]:
            self._frames.popleft()
            self.num_dropped += 1
        self._frames.append(frame)
        self._has_frame.set()

    def clear(self) -> None:
        """Drop what waits."""
        self._frames.clear()

    async def recv(self) -> Any:
        """Wait for the next frame."""
        while not self._frames:
            self._has_frame.clear()
            await self._has_frame.wait()
        if self.readyState != "live":
            raise MediaStreamError
        return self._frames.popleft()


class Tracks:
    """Both tracks of one connection, and the slot that they are at."""

    def __init__(self, *, sample_rate: int) -> None:
        self.video, self.audio = FrameTrack("video"), FrameTrack("audio")
        self._sample_rate, self._num_pieces = sample_rate, 0
        self._sound: NDArray[np.int16] | None = None

    @property
    def num_slots(self) -> int:
        """Slots that have begun."""
        return -(-self._num_pieces // 2)

    @property
    def between_slots(self) -> bool:
        """Whether the next piece begins a slot."""
        return self._num_pieces % 2 == 0

    def begin(self, frame: AVFrame | None) -> None:
        """Begin a slot with a frame, or with silence."""
        self._sound = None if frame is None else to_int16(frame.sound)
        if frame is not None:
            self.video.put(picture_frame(frame.picture, Fraction(self.num_slots, VIDEO_FPS)))

    def put_piece(self) -> None:
        """Hand on 20 ms of sound of the slot."""
        length = round(self._sample_rate * PIECE_S)
        sound = self._sound
        if sound is None:
            sound = np.zeros((2 * length, 1), np.int16)
        first = 0 if self.between_slots else length
        piece = sound[first : first + length]
        self.audio.put(
            sound_frame(
                piece, sample_rate=self._sample_rate, first_sample=self._num_pieces * length
            )
        )
        self._num_pieces += 1

    def cut(self) -> None:
        """Drop what waits; the rest of the slot is silent."""
        self._sound = None
        self.video.clear()
        if self.audio.num_waiting:
            # Sound goes on without a gap in its times: silence takes the place of what waits.
            waiting = self.audio.num_waiting
            self.audio.clear()
            self._num_pieces -= waiting
            for _ in range(waiting):
                self.put_piece()
