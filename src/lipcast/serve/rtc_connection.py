"""One WebRTC connection of a session: tracks of pictures and sound, a microphone, messages on a data channel.

The messages are those of the WebSocket (docs/live-protocol.md), without media. Input: an offer, which came
over HTTP. Output: an answer; then tracks. Everything about the session is done by `Connection`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcrtpsender import RTCRtpSender
from starlette.websockets import WebSocketDisconnect

from lipcast.config.models import VIDEO_FPS
from lipcast.engine.live_types import AVFrame
from lipcast.errors import CancelledError, InputError, OutputError
from lipcast.media.h264 import check_encoder
from lipcast.media.rtc_frames import mono_of
from lipcast.serve.connection import Connection
from lipcast.serve.hub import SAMPLE_RATE, Hosted, Hub
from lipcast.serve.logs import log_event
from lipcast.serve.rtc_media import PIECE_S, Tracks
from lipcast.serve.settings import ServeSettings
from lipcast.serve.voice_gate import VoiceGate

_CONNECT_S = 20
"""How long an answered offer may take to become a connection."""
_LATE_S = 0.5
"""A slot later than this begins a new clock; an earlier one is caught up with."""
_LINGER_S = 0.4
"""What the client has buffered is played before the connection ends."""
_FLUSH_S = 1.0
_MOST_INCOMING = 2**22
_MOST_OUTGOING = 2**18
_MOST_CANDIDATES = 64
_GONE = {"closed", "failed"}


class DataChannelSocket:
    """What `Connection` needs of a WebSocket, on a data channel."""

    def __init__(self, peer: RTCPeerConnection) -> None:
        self._peer, self._channel = peer, asyncio.get_running_loop().create_future()
        self._messages: deque[str | bytes] = deque()
        self._num_bytes, self._has_gone = 0, False
        self._woken = asyncio.Event()
        peer.on("datachannel", self._opened)
        peer.on("connectionstatechange", self._look)

    @property
    def is_open(self) -> bool:
        """Whether the client has opened its data channel."""
        return self._channel.done()

    async def accept(self) -> None:
        """Wait until the client has connected. Raises TimeoutError."""
        async with asyncio.timeout(_CONNECT_S):
            await asyncio.shield(self._channel)

    async def receive(self) -> dict[str, Any]:
        """Return the next message as ASGI does."""
        while not self._messages and not self._has_gone:
            self._woken.clear()
            await self._woken.wait()
        if not self._messages:
            return {"type": "websocket.disconnect"}
        message = self._messages.popleft()
        self._num_bytes -= len(message)
        kind = "text" if isinstance(message, str) else "bytes"
        return {"type": "websocket.receive", kind: message}

    async def send_text(self, data: str, /) -> None:
        """Send a message. Raises WebSocketDisconnect, or TimeoutError where the client reads nothing."""
        self._send(data)

    async def send_bytes(self, data: bytes, /) -> None:
        """Send a binary message, as `send_text` does."""
        self._send(data)

    def _send(self, data: str | bytes) -> None:
        channel: RTCDataChannel = self._channel.result()
        if channel.readyState != "open":
            raise WebSocketDisconnect(1006)
        if channel.bufferedAmount > _MOST_OUTGOING:
            raise TimeoutError("the client does not read its messages")
        channel.send(data)

    async def close(self, _code: int, _reason: str, /) -> None:
        """Wait until what was said has been sent."""
        channel: RTCDataChannel = self._channel.result()
        async with asyncio.timeout(_FLUSH_S):
            while channel.readyState == "open" and channel.bufferedAmount:
                await asyncio.sleep(PIECE_S)

    def _opened(self, channel: RTCDataChannel) -> None:
        if self._channel.done():
            channel.close()
            return
        self._channel.set_result(channel)
        channel.on("message", self._take)
        channel.on("close", self._leave)

    def _take(self, message: str | bytes) -> None:
        self._num_bytes += len(message)
        if self._num_bytes > _MOST_INCOMING:
            self._has_gone = True
            self._messages.clear()
        if not self._has_gone:
            self._messages.append(message)
        self._woken.set()

    def _look(self) -> None:
        if self._peer.connectionState in _GONE:
            self._leave()

    def _leave(self) -> None:
        self._has_gone = True
        self._woken.set()


class RtcConnection(Connection):
    """Runs one peer until either side ends it."""

    def __init__(self, hub: Hub, hosted: Hosted, peer: RTCPeerConnection) -> None:
        self._channel = DataChannelSocket(peer)
        super().__init__(hub, hosted, self._channel)
        self._peer, self._tracks = peer, Tracks(sample_rate=SAMPLE_RATE)
        self._senders = [peer.addTrack(track) for track in (self._tracks.video, self._tracks.audio)]
        self._listening: list[asyncio.Task[None]] = []
        self._last_heard = (0, time.monotonic())
        peer.on("track", self._hear)

    @property
    def is_connected(self) -> bool:
        """Whether the client has connected since the offer."""
        return self._channel.is_open

    async def run(self) -> None:
        """Serve the peer; the session stays for another connection, unless it has ended."""
        try:
            await self._channel.accept()
            if self._hub.find(self._hosted.key) is not None:
                await super().run()
        except TimeoutError:
            log_event("no connection came of an offer", session=self._hosted.label)
        finally:
            for task in self._listening:
                task.cancel()
            await asyncio.gather(*self._listening, return_exceptions=True)
            await self._peer.close()
            self._hub.metrics.late(self._tracks.video.num_dropped)

    # In.

    def _hear(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._listening:
            self._listening.append(asyncio.create_task(self._listen(track)))

    async def _listen(self, track: MediaStreamTrack) -> None:
        """Speak what the microphone hears, utterance by utterance."""
        gate = VoiceGate()
        try:
            while True:
                frame: Any = await track.recv()
                pieces, ends = gate.take(mono_of(frame))
                for piece in pieces:
                    self._hosted.active = time.monotonic()
                    self._live.push_audio(piece, sample_rate=frame.sample_rate)
                if ends:
                    self._live.end_utterance()
        except (MediaStreamError, CancelledError):
            return  # the track or the session has ended

    def _interrupt(self, message: dict[str, Any]) -> None:
        super()._interrupt(message)
        self._tracks.cut()

    # Out.

    async def _send_media(self) -> str:
        """Begin a slot every 40 ms, and hand on its sound in two pieces."""
        tracks, due, silent_s = self._tracks, time.monotonic(), 0.0
        self._last_heard = 0, due
        while silent_s < _LINGER_S:
            if tracks.between_slots:
                frame = next(iter(self._live.poll()), None)
                silent_s = silent_s + 2 * PIECE_S if frame is None and self._live.has_ended else 0.0
                await self._announce(frame)
                tracks.begin(frame)
                if await self._is_stalled():
                    return "stalled"
            tracks.put_piece()
            due += PIECE_S
            if (late_s := time.monotonic() - due) > _LATE_S:
                due += late_s
            await asyncio.sleep(max(0.0, -late_s))
        return "ended"

    async def _announce(self, frame: AVFrame | None) -> None:
        """Tell what begins with a frame: the stream, another epoch, speech after silence."""
        if frame is None:
            return
        before, kind = self._last_kind, (frame.epoch, frame.is_speech)
        self._last_kind = kind
        time_s = self._tracks.num_slots / VIDEO_FPS
        if before is None:
            height, width, _ = frame.picture.shape
            await self._send(
                type="stream", mime=None, width=width, height=height, fps=VIDEO_FPS,
                sample_rate=frame.sample_rate, epoch=frame.epoch, synthetic=True,
            )  # fmt: skip
        elif kind[0] != before[0] or (kind[1] and not before[1]):
            await self._send(type="cut", epoch=frame.epoch, time_s=time_s)

    async def _is_stalled(self) -> bool:
        """Whether no report of the receiver has come for so long that it is gone."""
        if self._tracks.num_slots % VIDEO_FPS:
            return False
        num_received = 0
        for sender in self._senders:
            for report in (await sender.getStats()).values():
                if report.type == "remote-inbound-rtp":
                    num_received += report.packetsReceived
        now = time.monotonic()
        if num_received != self._last_heard[0]:
            self._last_heard = num_received, now
        return now - self._last_heard[1] > self._hub.settings.stall_s


class RtcPeers:
    """Answers the offers of one server, and runs the connections that come of them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.ice_servers = _ice_servers(hub.settings)
        """STUN and TURN servers, as browsers take them."""
        self._running: dict[str, tuple[RtcConnection, asyncio.Task[None]]] = {}

    async def answer(self, hosted: Hosted, offer: str) -> str:
        """Return the answer to an offer (SDP). Raises InputError for one that cannot be answered.

        A connection of the session that has not come about is given up.
        """
        _check(offer)
        servers = [RTCIceServer(**each) for each in self.ice_servers]
        peer = RTCPeerConnection(RTCConfiguration(servers))  # an empty list: ask nobody
        try:
            connection = RtcConnection(self._hub, hosted, peer)
            await _negotiate(peer, offer)
        except Exception as error:
            await peer.close()
            raise InputError(f"offer: it cannot be answered ({error}); send another") from error
        except BaseException:
            await peer.close()
            raise
        before = self._running.get(hosted.key)
        if before is not None and not before[0].is_connected:
            before[1].cancel()
        task = asyncio.create_task(connection.run())
        self._running[hosted.key] = connection, task
        task.add_done_callback(lambda done: self._forget(hosted, done))
        return peer.localDescription.sdp

    async def stop(self) -> None:
        """End everything; the sessions have told their clients why."""
        tasks = list(self._running.values())
        for connection, task in tasks:
            if connection.is_connected:
                await asyncio.wait([task], timeout=_FLUSH_S)
            task.cancel()
        await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)

    def _forget(self, hosted: Hosted, task: asyncio.Task[None]) -> None:
        if hosted.key in self._running and self._running[hosted.key][1] is task:
            del self._running[hosted.key]
        if not task.cancelled() and (error := task.exception()) is not None:
            log_event("connection failed", session=hosted.label, error=repr(error))


def _ice_servers(settings: ServeSettings) -> list[dict[str, Any]]:
    servers: list[dict[str, Any]] = [{"urls": url} for url in settings.ice_servers]
    if settings.turn_url is not None:
        servers.append(
            {
                "urls": settings.turn_url,
                "username": settings.turn_user,
                "credential": settings.turn_password,
            }
        )
    return servers


def _check(offer: str) -> None:
    """Raise InputError for an offer that asks for more than a connection has."""
    lines = offer.splitlines()
    for kind in ("audio", "video", "application"):
        count = sum(line.startswith(f"m={kind} ") for line in lines)
        if count != 1:
            raise InputError(
                f"offer: expected one section of each kind (audio, video, application), got {count} of {kind}"
            )
    num_candidates = sum(line.startswith("a=candidate:") for line in lines)
    if num_candidates > _MOST_CANDIDATES:
        raise InputError(
            f"offer: expected at most {_MOST_CANDIDATES} candidates, got {num_candidates}"
        )


async def _negotiate(peer: RTCPeerConnection, offer: str) -> None:
    """Answer an offer: pictures go out only; H.264 or VP8, whichever the client names first."""
    video = next(each for each in peer.getTransceivers() if each.kind == "video")
    video.direction = "sendonly"
    try:
        check_encoder()
    except OutputError:
        known = RTCRtpSender.getCapabilities("video").codecs
        video.setCodecPreferences([codec for codec in known if codec.mimeType != "video/H264"])
    await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
