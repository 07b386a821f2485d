"""A client of WebRTC in this process: what came on the tracks and over the data channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcrtpsender import RTCRtpSender
from av import AudioFrame

PIECE = 960


class Microphone(MediaStreamTrack):
    """Sound at 48 kHz in pieces of 20 ms; silence after it."""

    kind = "audio"

    def __init__(self, sound: np.ndarray) -> None:
        super().__init__()
        self._sound, self._at = sound, 0

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(0.02)
        piece = np.zeros((1, PIECE), np.int16)
        heard = self._sound[self._at : self._at + PIECE]
        piece[0, : len(heard)] = heard
        frame = AudioFrame.from_ndarray(piece, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._at, Fraction(1, 48_000)
        self._at += PIECE
        return frame


class RtcClient:
    """Connects to a session, and keeps what comes. An asynchronous context manager."""

    def __init__(
        self,
        post: Callable[[dict[str, str]], Any],
        *,
        microphone: np.ndarray | None = None,
        codec: str | None = None,
        configuration: RTCConfiguration | None = None,
    ) -> None:
        """`post` sends an offer and returns the answer; `codec` is preferred, such as "video/H264"."""
        self._post = post
        self.peer = RTCPeerConnection(configuration or RTCConfiguration([]))
        self.channel = self.peer.createDataChannel("lipcast")
        self.messages: list[dict[str, Any]] = []
        self.shades: list[float] = []
        """Brightness of every picture."""
        self.peaks: list[int] = []
        """Loudest sample of every piece of sound."""
        self.changed = asyncio.Event()
        self._reading: list[asyncio.Task[None]] = []
        video = self.peer.addTransceiver("video", direction="recvonly")
        if codec is not None:
            known = RTCRtpSender.getCapabilities("video").codecs
            video.setCodecPreferences([each for each in known if each.mimeType == codec])
        if microphone is None:
            self.peer.addTransceiver("audio", direction="recvonly")
        else:
            self.peer.addTrack(Microphone(microphone))
        self.channel.on("message", self._note)
        self.channel.on("open", self.changed.set)
        self.channel.on("close", self.changed.set)
        self.peer.on(
            "track", lambda track: self._reading.append(asyncio.create_task(self._read(track)))
        )

    async def __aenter__(self) -> RtcClient:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        local = self.peer.localDescription
        answer = await asyncio.to_thread(self._post, {"type": local.type, "sdp": local.sdp})
        await self.peer.setRemoteDescription(RTCSessionDescription(**answer))
        await self.until(lambda: self.channel.readyState == "open")
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.peer.close()
        await asyncio.gather(*self._reading)

    def send(self, message: dict[str, Any] | bytes) -> None:
        self.channel.send(message if isinstance(message, bytes) else json.dumps(message))

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, and return what it returned."""
        async with asyncio.timeout(60):
            while not (found := condition()):
                self.changed.clear()
                await self.changed.wait()
            return found

    async def message(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a message."""
        return await self.until(
            lambda: next((each for each in self.messages if wanted(each)), None)
        )

    def _note(self, text: str) -> None:
        self.messages.append(json.loads(text))
        self.changed.set()

    async def _read(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            if track.kind == "video":
                self.shades.append(float(frame.to_ndarray(format="gray").mean()))
            else:
                self.peaks.append(int(np.abs(frame.to_ndarray().astype(int)).max()))
            self.changed.set()
