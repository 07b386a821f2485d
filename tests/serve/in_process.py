"""A server in process, and what came over a WebSocket of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from cheap_worker import CheapRenderer, Drawn
from fake_live import FakeModel
from lipcast.config.generate_options import GenerateOptions
from lipcast.serve.app import make_app
from lipcast.serve.hub import Hub
from lipcast.serve.settings import ServeSettings
from lipcast.serve.video_queue import MakeRenderer, VideoQueue, made_with
from lipcast.speech.services import SpeechServices

BASE, SOCKETS = "http://127.0.0.1:8000", "ws://127.0.0.1:8000"


class Drawing(CheapRenderer):
    """Makes videos that cost nothing; `on_block` hears of every block."""

    def __init__(self, _model: Any, on_block: Callable[[int], None]) -> None:
        super().__init__()
        self._on_block = on_block

    def _blocks(self, first: int, states: list[bytes]) -> Iterator[Drawn]:
        for block in super()._blocks(first, states):
            yield block
            self._on_block(len(block.frames))


class Server:
    """A client of a server with a model that computes nothing."""

    def __init__(
        self,
        model: FakeModel | None = None,
        make_renderer: MakeRenderer = Drawing,
        *,
        speech: SpeechServices | None = None,
        **changes: Any,
    ) -> None:
        self.model = model or FakeModel()
        changes.setdefault("prepare", False)
        settings, options = ServeSettings(**changes), GenerateOptions(size="64*64")
        videos = VideoQueue(
            settings, options=options, made_with=made_with(), make_renderer=make_renderer
        )
        self.hub = Hub(lambda: self.model, settings, options=options, speech=speech, videos=videos)
        self.client = TestClient(make_app(self.hub), base_url=BASE)

    def wait(self, condition: Any, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.02)

    def __enter__(self) -> Server:
        self.client.__enter__()
        self.wait(lambda: self.hub.is_ready or self.hub.failure)
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.__exit__(None, None, None)

    def open(self, **body: Any) -> str:
        answer = self.client.post("/api/sessions", json={"portrait": "portrait_0.png", **body})
        assert answer.status_code == 201, answer.text
        return answer.json()["session"]

    @contextmanager
    def connect(self, key: str, **more: Any) -> Iterator[Any]:
        with suppress(CancelledError):  # the test client cancels what it has disconnected from
            address = f"{SOCKETS}/api/sessions/{key}/stream"
            with self.client.websocket_connect(address, **more) as socket:
                yield socket


class Stream:
    """What came over a WebSocket so far."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.messages, self.media = socket, [], []
        self.media_after_cut: list[bytes] = []

    def until(self, wanted: Any, most: int = 10_000) -> dict[str, Any]:
        """Receive until a message for which `wanted` holds."""
        for _ in range(most):
            event = self.socket.receive()
            if event.get("bytes") is not None:
                self.media.append(event["bytes"])
                self.media_after_cut.append(event["bytes"])
                continue
            if event["type"] == "websocket.close":
                raise WebSocketDisconnect(event["code"], event.get("reason"))
            message = json.loads(event["text"])
            self.messages.append(message)
            if message["type"] == "cut":
                self.media_after_cut = []
            if wanted(message):
                return message
        raise AssertionError(f"no such message among {self.messages}")

    def take_media(self, count: int) -> None:
        while len(self.media) < count:
            self.until(lambda _: True)


def pcm(seconds: float, rate: int = 48_000) -> bytes:
    wave = 0.3 * np.sin(np.arange(round(seconds * rate)) * 0.1)
    return (wave * 32767).astype("<i2").tobytes()
