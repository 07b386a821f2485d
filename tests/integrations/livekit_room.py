"""A LiveKit room without a server: the real runner and sources, whose tracks are published to nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd
from livekit.agents.voice.io import AudioOutput

from fake_live import FakeModel
from lipcast.config.generate_options import GenerateOptions
from lipcast.engine.live import LiveSession
from lipcast.integrations.livekit import Avatar, LiveVideo

AGENT = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
VIEWER = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD
RATE = 24_000
"""Of the voice, in Hz."""
OUT_RATE = 48_000
"""Of the sound of an avatar, in Hz."""


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a test in an event loop; it has five minutes."""

    async def bounded() -> None:
        async with asyncio.timeout(300):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def open_live() -> LiveSession:
    """A session of a model that computes nothing; 5 s of sound may wait."""
    options = GenerateOptions()
    live = FakeModel().live(image=None, prompt="", sample_rate=OUT_RATE, options=options)
    live.limits = replace(live.limits, patience_s=300)  # no pause of a busy machine ends a segment
    return live


class Room(rtc.EventEmitter):
    """What an avatar needs of a room; it is its own participant, and the publication of its tracks."""

    def __init__(self, *viewers: str) -> None:
        super().__init__()
        self.local_participant, self.identity, self.num_published = self, "avatar", 0
        self.remote_participants: dict[str, Any] = {}
        for identity in viewers:
            self.join(identity)

    def isconnected(self) -> bool:
        return True

    async def publish_track(self, track: Any, options: Any) -> Room:
        self.num_published += 1
        return self

    async def wait_for_subscription(self) -> None:
        pass

    def join(self, identity: str, kind: int = VIEWER) -> None:
        self.remote_participants[identity] = SimpleNamespace(
            identity=identity, kind=kind, state=rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
        )
        self.emit("participant_connected", self.remote_participants[identity])

    def leave(self, identity: str) -> None:
        self.emit("participant_disconnected", self.remote_participants.pop(identity))


class Peer(Room):
    """One of two ends of a room, which hear each other's calls and streams of bytes."""

    def __init__(self, identity: str, *viewers: str) -> None:
        super().__init__(*viewers)
        self.identity, self.other = identity, self
        self._rpc_handlers: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}

    def meet(self, other: Peer) -> None:
        """Be in one room with another agent."""
        for one, two in ((self, other), (other, self)):
            one.other = two
            one.join(two.identity, AGENT)

    def register_rpc_method(self, method: str, handler: Any) -> None:
        self._rpc_handlers[method] = handler

    async def perform_rpc(self, *, destination_identity: str, method: str, payload: str) -> str:
        assert destination_identity == self.other.identity
        data = SimpleNamespace(caller_identity=self.identity, payload=payload)
        return self.other._rpc_handlers[method](data)

    def register_byte_stream_handler(self, topic: str, handler: Any) -> None:
        self._streams[topic] = handler

    async def stream_bytes(self, *, topic: str, attributes: dict[str, str], **_names: Any) -> Bytes:
        stream = Bytes(attributes)
        self.other._streams[topic](stream, self.identity)
        return stream

    async def set_attributes(self, attributes: dict[str, str]) -> None:
        self.attributes = attributes


class Bytes:
    """A stream of bytes: what one end writes, the other reads."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self.info = SimpleNamespace(attributes=attributes, stream_id="1")
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def write(self, data: bytes) -> None:
        self._pieces.put_nowait(data)

    async def aclose(self) -> None:
        self._pieces.put_nowait(None)

    async def __anext__(self) -> bytes:
        piece = await self._pieces.get()
        if piece is None:
            raise StopAsyncIteration
        return piece


class Watched:
    """Stands between a runner and its generator, and before its sources, and notes what passes."""

    def __init__(self, avatar: Avatar) -> None:
        runner = avatar.runner
        self._video: LiveVideo = avatar.video
        self._show = runner._video_source.capture_frame
        self._play = runner._audio_source.capture_frame
        self._audio, self._plays_until = runner._audio_source, 0.0
        self.order: list[str] = []
        """What was yielded: a (V)ideo frame, an (A)udio frame, or the (E)nd of a segment."""
        self.shown: list[tuple[float, int]] = []
        """When a picture was shown, and its level."""
        self.played: list[float] = []
        """When a sound was handed to its source."""
        self.skews_s: list[float] = []
        """How much later a picture was shown than its sound began to play."""
        self._pairs: dict[int, tuple[rtc.VideoFrame, dict[str, float]]] = {}
        runner._video_gen = self
        runner._video_source.capture_frame = self.show
        runner._audio_source.capture_frame = self.play

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        await self._video.push_audio(frame)

    def clear_buffer(self) -> Any:
        return self._video.clear_buffer()

    async def __aiter__(self) -> AsyncIterator[Any]:
        last: Any = None
        async for item in self._video:
            self.order.append({"VideoFrame": "V", "AudioFrame": "A"}.get(type(item).__name__, "E"))
            if isinstance(item, rtc.AudioFrame):
                times = self._pairs[id(last)][1]
                self._pairs[id(item)] = item, times
            elif isinstance(item, rtc.VideoFrame):
                self._pairs[id(item)] = item, {}
            last = item
            yield item

    def show(self, frame: rtc.VideoFrame, **options: Any) -> None:
        now = time.monotonic()
        self.shown.append((now, frame.data[0]))
        self._note(frame, shown=now)
        self._show(frame, **options)

    async def play(self, frame: rtc.AudioFrame) -> None:
        now = time.monotonic()
        self.played.append(now)
        self._note(frame, heard=now + self._audio.queued_duration)
        await self._play(frame)

    def _note(self, frame: Any, **when: float) -> None:
        times = self._pairs[id(frame)][1]
        times |= when
        if len(times) == 2:
            self.skews_s.append(times["shown"] - times["heard"])


class Events:
    """What an agent is told of the playback."""

    def __init__(self, voice: AudioOutput) -> None:
        self.names: list[str] = []
        self.positions: list[float] = []
        self.times: list[float] = []
        voice.on("playback_started", lambda _: self._add("started"))
        voice.on("playback_finished", self._finished)

    def _finished(self, event: Any) -> None:
        self.positions.append(event.playback_position)
        self._add("interrupted" if event.interrupted else "finished")

    def _add(self, name: str) -> None:
        self.names.append(name)
        self.times.append(time.monotonic())


def tone(seconds: float, rate: int = RATE) -> list[rtc.AudioFrame]:
    """A tone in pieces of 100 ms."""
    wave = (np.sin(np.arange(round(seconds * rate)) * 0.05) * 8000).astype(np.int16)
    pieces = [wave[first : first + rate // 10] for first in range(0, len(wave), rate // 10)]
    return [rtc.AudioFrame(piece.tobytes(), rate, 1, len(piece)) for piece in pieces]


async def say(voice: AudioOutput, seconds: float) -> None:
    """Hand a segment to an avatar at once, as a fast speech synthesis does."""
    for piece in tone(seconds):
        await voice.capture_frame(piece)
    voice.flush()
