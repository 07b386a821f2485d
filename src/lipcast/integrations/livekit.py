"""An avatar in a LiveKit room: a live session as the video generator of LiveKit's `AvatarRunner`.

Input: an agent's voice, from the same process (`QueueAudioOutput`) or another (`DataStreamAudioReceiver`).
Output: pictures, each followed by exactly its 40 ms of sound. Invariants: one `AudioSegmentEnd` for every
segment, after its last sound; none of an interrupted one. Everything runs in one event loop, and computes in
the thread of the model's live sessions. An idle face has no sound: LiveKit takes any for the start of speech.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioReceiver,
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    VideoGenerator,
)

from lipcast.config.models import VIDEO_FPS
from lipcast.engine.live import LiveSession
from lipcast.engine.live_types import AVFrame
from lipcast.errors import CancelledError
from lipcast.speech.sound import to_int16

_FRAME_S = 1 / VIDEO_FPS
_LATE_S = _FRAME_S / 2
"""A frame later than this begins a new clock; an earlier one is caught up with."""
_SETTLE_S = 1.0
"""How long an interruption waits at most until sound that was handed on has been taken."""
_ROUNDING_S = 0.001
_COMINGS = "connection_state_changed", "participant_connected", "participant_disconnected"


class LiveVideo(VideoGenerator):
    """The pictures and the sound of a live session, in the order in which `AvatarRunner` shows them."""

    def __init__(self, live: LiveSession) -> None:
        """`live` belongs to the caller; iterate once."""
        self._live = live
        self.synchronizer: rtc.AVSynchronizer | None = None
        """That of the runner: an interruption empties its queues, and a late frame restarts its clock."""
        self._has_sound = self._is_ending = self._is_sounding = False
        self._stepped = asyncio.Event()
        self._due_s = 0.0
        self._was_heard = False

    # In.

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Speak a piece of sound, or end the segment; waits where enough sound waits already.

        An end without sound before it, such as comes after an interruption, is ignored. Raises CancelledError
        of `lipcast.errors` once the session is closed.
        """
        if isinstance(frame, AudioSegmentEnd):
            if self._has_sound:
                self._has_sound, self._is_ending = False, True
                self._live.end_utterance()
            return
        epoch, rate = self._live.epoch, frame.sample_rate
        samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        for first in range(0, len(samples), rate):
            piece = samples[first : first + rate]
            while not self._has_room(len(piece) / rate):
                self._stepped.clear()
                await self._stepped.wait()
            if self._live.epoch != epoch:
                return
            if self._live.push_audio(piece, sample_rate=rate):
                self._has_sound = True

    def _has_room(self, seconds: float) -> bool:
        """Whether sound may be pushed: the segment before has been spoken, and not too much waits."""
        if self._live.has_ended:
            return True
        waiting_s = self._live.stats().pending_s
        fits = not waiting_s or waiting_s + seconds < self._live.limits.max_pending_s - _ROUNDING_S
        return fits and not self._is_ending

    def clear_buffer(self) -> Coroutine[None, None, None] | None:
        """Interrupt: nothing that was pushed is said any more. What is returned has to be awaited."""
        with suppress(CancelledError):  # a session that has ended says nothing anyway
            self._live.interrupt()
        self._has_sound = self._is_ending = self._was_heard = False
        self._stepped.set()
        return self._settle() if self.synchronizer or self._is_sounding else None

    async def _settle(self) -> None:
        """Wait until the sound that was handed on counts as played: later it would be a new beginning."""
        if self.synchronizer is not None:
            await self.synchronizer.clear_queue()
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while self._is_sounding:
                    self._stepped.clear()
                    await self._stepped.wait()

    # Out.

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Yield until the session ends. Raises SessionFailedError where an error has ended it."""
        self._due_s = asyncio.get_running_loop().time()
        try:
            while found := (await self._live.wait_for(self._look))[0]:
                if isinstance(found, AudioSegmentEnd):
                    yield found
                    continue
                is_heard = found.is_heard
                await self._pace(is_heard)
                if found.epoch != self._live.epoch:
                    continue
                yield picture_of(found)
                if is_heard and found.epoch == self._live.epoch:
                    self._is_sounding = True
                    yield sound_of(found)
                    self._is_sounding = False
                self._stepped.set()
        finally:
            self._is_sounding = False
            self._stepped.set()

    def _look(self) -> tuple[AVFrame | AudioSegmentEnd | None] | None:
        """Return what comes next, or (None,) after the end; None where nothing is ready."""
        if self._is_ending and not self._live.has_unspoken:
            self._is_ending = False
            self._stepped.set()
            return (AudioSegmentEnd(),)
        has_ended = self._live.has_ended
        found = self._live.poll()
        if found:
            return (found[0],)
        return (None,) if has_ended else None

    async def _pace(self, is_heard: bool) -> None:
        """Wait for the time of a picture without sound, and of the first one with sound.

        Sound that follows on sound goes ahead, as far as the runner's queue of 100 ms has room; its pictures
        wait in the other queue. Silent pictures must not: speech would be shown that much after it is heard.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._due_s > _LATE_S:
            if self.synchronizer is not None:
                # Otherwise it shows the next pictures early, to make up for this one.
                await self.synchronizer.wait_for_playout()
                self.synchronizer.reset()
            self._due_s = asyncio.get_running_loop().time()
        elif not (is_heard and self._was_heard):
            await asyncio.sleep(self._due_s - now_s)
        self._due_s, self._was_heard = self._due_s + _FRAME_S, is_heard


class Avatar:
    """A live session in a room, from `start` until `aclose`."""

    def __init__(self, live: LiveSession, room: rtc.Room, audio: AudioReceiver) -> None:
        """`audio` brings the voice. The session belongs to the avatar, which closes it."""
        self._live, self._room = live, room
        geometry = live.inner.spec.geometry
        self.video = LiveVideo(live)
        self.runner = AvatarRunner(
            room,
            audio_recv=audio,
            video_gen=self.video,
            options=AvatarOptions(
                video_width=geometry.width,
                video_height=geometry.height,
                video_fps=VIDEO_FPS,
                audio_sample_rate=live.sample_rate,
                audio_channels=1,
            ),
        )
        self.video.synchronizer = self.runner.av_sync
        self._has_left = asyncio.Event()
        self._is_started = self._is_closed = False

    async def start(self) -> None:
        """Begin to listen, and to show the face as soon as somebody is in the room who is no agent."""
        self._look_around()
        await self.runner.start()
        self._is_started = True
        for event in _COMINGS:
            self._room.on(event, self._look_around)
        self._room.on("disconnected", self._leave)
        self._look_around()

    async def wait(self) -> None:
        """Wait until the session has ended or the room is left.

        Raises SessionFailedError where an error has ended the session.
        """
        complete = asyncio.shield(self.runner.wait_for_complete())  # `wait` may be cancelled alone
        endings = [complete, asyncio.ensure_future(self._has_left.wait())]
        try:
            done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in endings:
                task.cancel()

    async def aclose(self) -> None:
        """End the tracks, and close the session. May be called before `start`, and again."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_started:
            for event in _COMINGS:
                self._room.off(event, self._look_around)
            self._room.off("disconnected", self._leave)
            await self.runner.aclose()
        else:
            await self.runner.av_sync.aclose()
        await asyncio.to_thread(self._live.close)

    def _leave(self, *_event: object) -> None:
        self._has_left.set()

    def _look_around(self, *_event: object) -> None:
        """Make nothing while nobody watches."""
        if any(map(_watches, self._room.remote_participants.values())):
            self._live.resume()
        else:
            self._live.pause()


def _watches(participant: rtc.RemoteParticipant) -> bool:
    return bool(participant.kind != rtc.ParticipantKind.PARTICIPANT_KIND_AGENT)


def picture_of(frame: AVFrame) -> rtc.VideoFrame:
    """Return the picture of a frame."""
    height, width, _ = frame.picture.shape
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.picture.tobytes())


def sound_of(frame: AVFrame) -> rtc.AudioFrame:
    """Return the 40 ms of sound of a frame."""
    samples = to_int16(frame.sound.mean(axis=1))
    return rtc.AudioFrame(samples.tobytes(), frame.sample_rate, 1, len(samples))
