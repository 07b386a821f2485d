"""A server with OpenAI's endpoints for speech, transcripts and chat, in threads of this process."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from lipcast.speech.sound import Sound, wav_bytes

RATE = 24_000


def tone(seconds: float) -> np.ndarray:
    return (8000 * np.sin(np.arange(round(seconds * RATE)) * 0.1)).astype(np.int16)


def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """A piece of an answer of the chat."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    kind = "chat.completion.chunk"
    return {"id": "c1", "object": kind, "created": 1, "model": "small", "choices": [choice]}


def sent_event(document: Any) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


@dataclass
class Asked:
    """One request."""

    path: str
    key: str | None
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FakeOpenAI:
    """What it answers, and what it was asked. A context manager."""

    pieces: list[str] = field(default_factory=lambda: ["Hello there. ", "How are you?"])
    """Of an answer of the chat."""
    transcript: str = "What is the time?"
    sound: bytes = field(default_factory=lambda: wav_bytes([Sound(tone(0.5), RATE)]))
    failure: tuple[int, dict[str, str], bytes] | None = None
    """Status, headers and body in place of every answer."""
    is_cut: bool = False
    """Break the connection off in the middle of an answer."""
    gate: threading.Event | None = None
    """What an answer waits for before its last piece."""
    asked: list[Asked] = field(default_factory=list)
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when a client has gone before its answer was complete."""

    def __enter__(self) -> FakeOpenAI:
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_error: object) -> None:
        if self.gate is not None:
            self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def asked_for(self, path: str) -> list[Asked]:
        return [one for one in self.asked if one.path.endswith(path)]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOpenAI
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: Any) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        body = self.rfile.read(int(self.headers["content-length"]))
        fake.asked.append(Asked(self.path, self.headers["authorization"], body))
        if fake.failure is not None:
            status, headers, content = fake.failure
            self._send(status, {"content-type": "application/json", **headers}, [content])
        elif "audio/speech" in self.path:
            half = len(fake.sound) // 2
            self._send(200, {"content-type": "audio/wav"}, [fake.sound[:half], fake.sound[half:]])
        elif self.path.endswith("audio/transcriptions"):
            content = json.dumps({"text": fake.transcript}).encode()
            self._send(200, {"content-type": "application/json"}, [content])
        else:
            events = [sent_event(chunk(content=piece)) for piece in fake.pieces]
            ends = sent_event(chunk("stop")) + b"data: [DONE]\n\n"
            self._send(200, {"content-type": "text/event-stream"}, [*events, ends])

    def _send(self, status: int, headers: dict[str, str], parts: list[bytes]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        is_chunked = len(parts) > 1  # as servers answer that do not know the length yet
        length = ("content-length", str(sum(map(len, parts))))
        self.send_header(*(("transfer-encoding", "chunked") if is_chunked else length))
        self.send_header("connection", "close")
        self.end_headers()
        for number, part in enumerate(parts):
            if self.fake.gate is not None and number >= max(1, len(parts) - 2):
                self._wait()
            if self.fake.is_cut and number == len(parts) - 1:
                break
            is_last = number == len(parts) - 1
            try:
                self.wfile.write(_as_chunk(part, is_last) if is_chunked else part)
                self.wfile.flush()
            except OSError:
                self.fake.lost.set()
                break
        self.close_connection = True

    def _wait(self) -> None:
        """Wait for the gate; look meanwhile whether the client is still there."""
        assert self.fake.gate is not None
        self.connection.settimeout(0.05)
        while not self.fake.gate.is_set():
            try:
                if not self.connection.recv(1):
                    self.fake.lost.set()
                    return
            except TimeoutError:
                time.sleep(0.01)
            except OSError:
                self.fake.lost.set()
                return
        self.connection.settimeout(10)


def _as_chunk(part: bytes, is_last: bool) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part) + (b"0\r\n\r\n" if is_last else b"")
