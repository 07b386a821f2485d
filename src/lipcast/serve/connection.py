"""One WebSocket of a session: sound and commands come in, fragmented MP4 and messages go out.

The protocol is described in docs/live-protocol.md. Input: binary messages with 16-bit PCM, text messages with
JSON. Output: an initialisation segment and fragments, binary; what happens, as JSON. A message that cannot be
used is answered with an error and changes nothing; too many of them end the connection.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from starlette.websockets import WebSocketDisconnect

from lipcast.config.models import VIDEO_FPS
from lipcast.engine.live_types import AVFrame, LiveStats
from lipcast.errors import InputError, LipcastError, SessionFailedError, UsageError
from lipcast.media.live_encoder import LiveEncoder
from lipcast.serve.hub import Hosted, Hub
from lipcast.serve.logs import log_event
from lipcast.serve.pacer import LEAD_IDLE_S, LEAD_SPEECH_S, Pacer
from lipcast.serve.settings import MAX_PROMPT

_MAX_EVENTS = 200
_MAX_ERRORS = 20
_REPORT_S = 0.5
_LOOK_S = 0.02
_CLOSE_CODES = {"replaced": 4409, "shutdown": 1012, "error": 1011, "time limit": 4408}
_NORMAL = 1000


class Socket(Protocol):
    """What carries messages: a WebSocket, or a data channel of WebRTC."""

    async def accept(self) -> None: ...

    async def receive(self) -> MutableMapping[str, Any]: ...

    async def send_text(self, data: str, /) -> None: ...

    async def send_bytes(self, data: bytes, /) -> None: ...

    async def close(self, code: int, reason: str, /) -> None: ...


class Connection:
    """Runs one WebSocket until either side ends it."""

    def __init__(self, hub: Hub, hosted: Hosted, socket: Socket) -> None:
        self._hub, self._hosted, self._live, self._socket = hub, hosted, hosted.live, socket
        self._rate, self._channels = 48_000, 1
        self._talk, self._use = hosted.talk, "speak"
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_MAX_EVENTS)
        self._num_errors = 0
        self._pacer = Pacer()
        self._encoder: LiveEncoder | None = None
        self._last_kind: tuple[int, bool] | None = None
        self._key_wanted = False
        self._left: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._commands: Mapping[str, Callable[[dict[str, Any]], Awaitable[None] | None]] = {
            "audio": self._set_format,
            "say": lambda message: self._talk.say(message.get("text", "")),
            "ask": lambda message: self._talk.ask(message.get("text", "")),
            "end": lambda _: self._end_utterance(),
            "interrupt": self._interrupt,
            "prompt": self._set_prompt,
            "pause": lambda _: self._live.pause(),
            "resume": lambda _: self._live.resume(),
            "key": self._want_key,
            "finish": lambda _: self._live.finish(),
            "ping": lambda message: self._send(type="pong", time=message.get("time")),
        }

        self._uses: Mapping[str, Callable[[NDArray[np.int16], int], object]] = {
            "speak": lambda samples, rate: self._live.push_audio(samples, sample_rate=rate),
            "ask": self._talk.hear,
            "watch": self._talk.watch,
        }

    async def run(self) -> None:
        """Serve the connection; the session stays for another one, unless it has ended."""
        await self._socket.accept()
        self._hub.attach(self._hosted, self._leave)
        self._talk.emit, self._talk.ahead_s = self._note, lambda: self._pacer.ahead_s
        tasks = [
            asyncio.create_task(part())
            for part in (
                self._receive,
                self._send_media,
                self._send_events,
                self._report,
                self._wait_to_leave,
            )
        ]
        reason = "disconnected"
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reason = min((self._reason(task) for task in done), key=lambda found: found == "error")
        finally:
            for task in tasks:
                task.cancel()
            self._hub.detach(self._hosted, self._leave, reason)
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._end(reason)

    def _reason(self, task: asyncio.Task[str]) -> str:
        """Return why the connection has ended; a client that left while it was sent to may come back."""
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, WebSocketDisconnect):
            return "disconnected"
        if isinstance(error, TimeoutError):
            return "stalled"
        log_event("connection failed", session=self._hosted.label, error=repr(error))
        return "error"

    def _leave(self, reason: str) -> None:
        if not self._left.done():
            self._left.set_result(reason)

    async def _wait_to_leave(self) -> str:
        return await self._left

    async def _end(self, reason: str) -> None:
        """Say why, and close; a session that has ended is forgotten."""
        if reason in {"ended", "error", "closed"}:
            await self._hub.close(self._hosted, reason)
        if reason in {"disconnected", "stalled"}:
            return
        try:
            async with asyncio.timeout(1):
                await self._send(type="closed", reason=reason)
                await self._socket.close(_CLOSE_CODES.get(reason, _NORMAL), reason)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            return  # the client has gone first

    # In.

    async def _receive(self) -> str:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return "disconnected"
            self._hosted.active = time.monotonic()
            try:
                if message.get("bytes") is not None:
                    self._push(message["bytes"])
                elif await self._command(message.get("text") or ""):
                    return "closed"
            except SessionFailedError:
                raise
            except LipcastError as error:
                self._num_errors += 1
                await self._send(type="error", code="refused", message=str(error))
                if self._num_errors >= _MAX_ERRORS:
                    return "too many errors"

    def _push(self, content: bytes) -> None:
        if len(content) % (2 * self._channels):
            raise InputError(
                f"sound: expected 16-bit samples of {self._channels} channel(s), got {len(content)} bytes"
            )
        samples = np.frombuffer(content, "<i2").astype(np.int16, copy=False)
        shaped = samples.reshape(-1, self._channels)
        self._uses[self._use](shaped, self._rate)

    async def _command(self, text: str) -> bool:
        """Follow a command; True where it ends the session."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"message: expected JSON, got {text[:40]!r}") from error
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "close":
            return True
        if not isinstance(kind, str) or kind not in self._commands:
            known = ", ".join((*self._commands, "close"))
            raise InputError(f"message: unknown type {str(kind)[:40]!r}; expected one of: {known}")
        done = self._commands[kind](message)
        if done is not None:
            await done
        return False

    def _set_format(self, message: dict[str, Any]) -> None:
        rate, channels = message.get("sample_rate"), message.get("channels", 1)
        if not isinstance(rate, int) or not 8_000 <= rate <= 192_000 or channels not in {1, 2}:
            raise UsageError("audio: expected sample_rate from 8000 to 192000 and 1 or 2 channels")
        use = message.get("use", "speak")
        if not isinstance(use, str) or use not in self._uses:
            raise UsageError(f"audio: expected use to be one of: {', '.join(self._uses)}")
        self._rate, self._channels, self._use = rate, channels, use

    def _interrupt(self, _message: dict[str, Any]) -> None:
        epoch = self._talk.interrupt()
        log_event("interrupted", session=self._hosted.label, epoch=epoch)

    def _end_utterance(self) -> None:
        if self._use == "ask":
            self._talk.end_turn()
        else:
            self._live.end_utterance()

    def _want_key(self, _message: dict[str, Any]) -> None:
        self._key_wanted = True

    async def _set_prompt(self, message: dict[str, Any]) -> None:
        text = message.get("text")
        if not isinstance(text, str) or len(text) > MAX_PROMPT:
            raise UsageError(f"prompt: expected a text of at most {MAX_PROMPT} characters")
        await asyncio.to_thread(self._live.set_prompt, text)

    # Out.

    async def _send(self, **message: Any) -> None:
        await self._socket.send_text(json.dumps(message))

    def _note(self, event: dict[str, Any]) -> None:
        """Queue an event of the speech loop; one that a stalled client has no room for is dropped."""
        with suppress(asyncio.QueueFull):
            self._events.put_nowait(event)

    async def _send_events(self) -> str:
        while True:
            await self._send(**await self._events.get())

    async def _report(self) -> str:
        """Say what has changed, twice a second at most."""
        last: LiveStats | None = None
        while True:
            stats = self._live.stats()
            if stats != last:
                described = asdict(stats) | {"state": stats.state.value}
                ahead_s, memory = round(self._pacer.ahead_s, 3), self._hub.metrics.process_bytes()
                await self._send(type="state", ahead_s=ahead_s, memory_bytes=memory, **described)
            last = stats
            await asyncio.sleep(_REPORT_S)

    async def _send_media(self) -> str:
        try:
            while True:
                await self._wait_until_due()
                frames = await self._live.next_frames(VIDEO_FPS // 2)
                if not frames:
                    return "ended"
                async with asyncio.timeout(self._hub.settings.stall_s):
                    await self._send_frames(frames)
        except TimeoutError:
            return "stalled"

    async def _send_frames(self, frames: list[AVFrame]) -> None:
        first, encoder = frames[0], await self._opened(frames[0])
        kind = first.epoch, first.is_speech
        # Speech after silence, and every new epoch, is played at once in place of what is buffered.
        cuts = self._last_kind is not None and (
            kind[0] != self._last_kind[0] or (kind[1] and not self._last_kind[1])
        )
        time_s = encoder.num_pictures / VIDEO_FPS
        if cuts:
            self._pacer.cut()
            await self._send(type="cut", epoch=first.epoch, time_s=time_s)
        is_key, self._key_wanted = self._key_wanted, False
        if is_key:
            await self._send(type="key", time_s=time_s)
        self._last_kind = kind
        pictures = np.stack([frame.picture for frame in frames])
        sound = np.concatenate([frame.sound for frame in frames])
        data = await asyncio.to_thread(encoder.encode, pictures, sound, key=cuts or is_key)
        await self._socket.send_bytes(data)
        self._pacer.sent(len(frames) / VIDEO_FPS)

    async def _opened(self, frame: AVFrame) -> LiveEncoder:
        """Return the encoder; the first frame tells its sizes, and the stream begins."""
        if self._encoder is not None:
            return self._encoder
        height, width, _ = frame.picture.shape
        self._encoder = encoder = LiveEncoder(
            width=width,
            height=height,
            sample_rate=frame.sample_rate,
            num_channels=frame.sound.shape[1],
            marked=self._hub.settings.marked,
        )
        await self._send(
            type="stream", mime=encoder.info.mime, width=width, height=height, fps=VIDEO_FPS,
            sample_rate=frame.sample_rate, epoch=frame.epoch, synthetic=True,
        )  # fmt: skip
        await self._socket.send_bytes(encoder.init_segment)
        return encoder

    async def _wait_until_due(self) -> None:
        """Wait while enough is buffered; what replaces the buffer is due at once."""
        while True:
            kind = self._live.next_kind() or self._last_kind or (0, False)
            last = self._last_kind or kind
            if kind[0] != last[0] or (kind[1] and not last[1]):
                return
            late = self._pacer.ahead_s - (LEAD_SPEECH_S if kind[1] else LEAD_IDLE_S)
            if late <= 0:
                return
            await asyncio.sleep(min(late, _LOOK_S))
