"""The server in process: who may come in, what is refused, what a session says and sends."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from fake_live import FakeModel
from lipcast.config.generate_options import GenerateOptions
from lipcast.errors import CheckpointError, UsageError
from lipcast.serve.app import make_app
from lipcast.serve.hub import Hub
from lipcast.serve.settings import ServeSettings
from sounds import EXAMPLES

TOKEN = "a-token-of-the-test"
BASE = "http://127.0.0.1:8000"
SOCKETS = "ws://127.0.0.1:8000"
OPEN_TO_ALL = {"host": "0.0.0.0", "token": TOKEN}
PATHS = ["/", "/healthz", "/readyz", "/metrics", "/api/info", "/openapi.json", "/assets/app.js",
         "/api/examples/portrait_0.png", "/nothing"]  # fmt: skip


class Server:
    """A client of a server with a model that computes nothing."""

    def __init__(self, model: FakeModel | None = None, **changes: Any) -> None:
        self.model = model or FakeModel()
        self.hub = Hub(
            lambda: self.model, ServeSettings(**changes), options=GenerateOptions(size="64*64")
        )
        self.client = TestClient(make_app(self.hub), base_url=BASE)

    def wait(self, condition: Any, seconds: float = 10) -> None:
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


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


class Stream:
    """What came over a WebSocket so far."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.messages, self.media = socket, [], []
        self.media_after_cut: list[bytes] = []

    def until(self, wanted: Any, most: int = 400) -> dict[str, Any]:
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


# Who may come in.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", ["nothing", "bearer", "query", "cookie"])
def test_off_loopback_nothing_is_seen_without_the_token(path, given):
    for token in (TOKEN, "wrong" * 4):
        with Server(**OPEN_TO_ALL) as server:
            how = {
                "bearer": {"headers": {"authorization": f"Bearer {token}"}},
                "query": {"params": {"token": token}},
                "cookie": {"headers": {"cookie": f"lipcast_token={token}"}},
            }.get(given, {})
            answer = server.client.get(path, follow_redirects=False, **how)
            if given == "nothing" or token != TOKEN:
                assert answer.status_code == 401 and "token" in answer.json()["error"]["message"]
            else:
                assert answer.status_code != 401


def test_a_socket_needs_the_token_too():
    with Server(**OPEN_TO_ALL) as server:
        for query in ("", "?token=wrong-wrong"):
            with pytest.raises(WebSocketDenialResponse) as refused:
                server.client.websocket_connect(
                    f"{SOCKETS}/api/sessions/x/stream{query}"
                ).__enter__()
            assert refused.value.status_code == 401
        for method in ("post", "delete", "put"):
            assert getattr(server.client, method)("/api/sessions").status_code == 401


def test_the_token_leaves_the_address():
    with Server(**OPEN_TO_ALL) as server:
        answer = server.client.get(f"/?token={TOKEN}", follow_redirects=False)
        assert answer.status_code == 303 and TOKEN not in answer.headers["location"]
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert server.client.get("/").status_code == 200  # the client keeps the cookie


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [({}, True), ({"origin": BASE}, True), ({"origin": "https://evil.example"}, False),
     ({"origin": "null"}, False), ({"origin": "https://friend.example"}, True)],
)  # fmt: skip
def test_origins(headers, allowed):
    with Server(allowed_origins=("https://friend.example",)) as server:
        key = server.open()
        assert (server.client.get("/api/info", headers=headers).status_code == 200) is allowed
        if allowed:
            with server.connect(key, headers=headers):
                return
        with pytest.raises(WebSocketDenialResponse) as refused:
            server.connect(key, headers=headers).__enter__()
        assert refused.value.status_code == 403


def test_without_a_token_a_foreign_host_name_is_refused(server):
    answer = server.client.get("/", headers={"host": "rebound.example:8000"})
    assert answer.status_code == 403 and "--token" in answer.json()["error"]["message"]


def test_a_token_is_made_up_off_loopback():
    assert ServeSettings(host="127.0.0.2").with_token().token is None
    assert len(ServeSettings(host="0.0.0.0").with_token().token or "") > 20
    assert ServeSettings(host="0.0.0.0", token=TOKEN).with_token().token == TOKEN
    with pytest.raises(UsageError, match="8 characters"):
        ServeSettings(token="short")
    with pytest.raises(UsageError, match="certificate"):
        ServeSettings(tls_cert=EXAMPLES / "portrait_0.png")


# What is refused.


def _png_bomb(side: int) -> bytes:
    """A small file that claims to be a picture of `side` x `side`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "empty"),
        (b"<!doctype html><script>alert(1)</script>", 400, "not one"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "not one"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "not one"),
        (_png_bomb(10_000), 400, "25 megapixels"),
        (_png_bomb(30_000), 400, "megapixels"),
        (bytes(11 * 2**20), 413, "10 MiB"),
    ],
    ids=["empty", "html", "svg", "eps", "100 MP", "900 MP", "11 MiB"],
)
def test_uploads_that_cannot_be_used(server, content, status, says):
    answer = server.client.post("/api/portraits", content=content)
    assert answer.status_code == status and says in answer.json()["error"]["message"]


def test_an_upload_becomes_a_session(server):
    content = (EXAMPLES / "portrait_3.png").read_bytes()
    answer = server.client.post("/api/portraits", content=content).json()
    server.open(portrait=answer["portrait"], prompt="calm", seed=3)
    made = server.model.keywords[-1]
    assert made["image"].size == (answer["width"], answer["height"])
    options = made["options"]
    assert (made["prompt"], options.seed, options.size) == ("calm", 3, "64*64")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..%2f..%2fpyproject.toml", "%2e%2e/app.py", "x%00y"]
)
def test_paths_lead_nowhere(server, name):
    for folder in ("assets", "api/examples"):
        assert server.client.get(f"/{folder}/{name}").status_code == 404
    answer = server.client.post("/api/sessions", json={"portrait": name})
    assert answer.status_code == 400 and "no portrait" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [{}, {"portrait": 3}, {"portrait": "a" * 101}, {"portrait": "portrait_0.png", "seed": -1},
     {"portrait": "portrait_0.png", "size": "9999*9999"},
     {"portrait": "portrait_0.png", "prompt": "x" * 2001}],
)  # fmt: skip
def test_wrong_requests(server, body):
    answer = server.client.post("/api/sessions", json=body)
    assert answer.status_code == 422 and answer.json()["error"]["message"]


def test_sessions_are_bounded_and_admitted():
    with Server(max_sessions=2) as server:
        keys = [server.open(), server.open()]
        refused = server.client.post("/api/sessions", json={"portrait": "portrait_0.png"})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert server.client.delete(f"/api/sessions/{keys[0]}").status_code == 204
        server.open()
        assert server.client.delete("/api/sessions/none").status_code == 404
    with Server(FakeModel(room=1)) as server:
        server.open()
        refused = server.client.post("/api/sessions", json={"portrait": "portrait_0.png"})
        assert refused.status_code == 503 and "does not fit" in refused.json()["error"]["message"]


def test_a_model_that_cannot_be_loaded():
    def load() -> FakeModel:
        raise CheckpointError("the model is not there")

    hub = Hub(load, ServeSettings())
    with TestClient(make_app(hub), base_url=BASE) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.post("/api/sessions", json={"portrait": "portrait_0.png"}).status_code == 503
    assert isinstance(hub.failure, CheckpointError)


# What a session says and sends.


def test_a_stream_is_a_video_with_its_sound(server):
    with server.connect(server.open()) as socket:
        stream = Stream(socket)
        start = stream.until(lambda message: message["type"] == "stream")
        assert start["synthetic"] and start["fps"] == 25 and "avc1" in start["mime"]
        socket.send_bytes(pcm(1.2))
        socket.send_json({"type": "end"})
        stream.until(lambda message: message["type"] == "cut")
        stream.take_media(len(stream.media) + 5)
        socket.send_json({"type": "close"})
        assert stream.until(lambda message: message["type"] == "closed")["reason"] == "closed"
    with av.open(io.BytesIO(b"".join(stream.media))) as file:
        assert "Synthetic" in file.metadata["comment"]
        pictures = [picture.to_ndarray(format="gray").mean() for picture in file.decode(video=0)]
    with av.open(io.BytesIO(b"".join(stream.media))) as file:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    bright = np.flatnonzero(np.array(pictures) > 200)
    loud = np.flatnonzero(np.abs(sound) > 0.1)
    assert len(bright) == 36  # 1.2 s of speech in whole blocks
    assert loud[0] / 48_000 == pytest.approx(bright[0] / 25, abs=0.04)
    assert (loud[-1] - loud[0]) / 48_000 == pytest.approx(1.2, abs=0.05)
    assert server.hub.num_sessions == 0 and server.model.sessions[-1].closed


def test_interrupt_cuts_to_a_silent_epoch(server):
    with server.connect(server.open()) as socket:
        stream = Stream(socket)
        socket.send_bytes(pcm(4))
        stream.until(lambda message: message.get("state") == "speaking")
        socket.send_json({"type": "interrupt"})
        cut = stream.until(lambda message: message["type"] == "cut" and message["epoch"] == 1)
        sent = len(stream.media)
        stream.take_media(sent + 3)
        state = stream.until(lambda message: message["type"] == "state")
    assert state["pending_s"] == 0 and state["num_interrupts"] == 1 and state["epoch"] == 1
    with av.open(io.BytesIO(b"".join(stream.media))) as file:
        shades = [p.to_ndarray(format="gray").mean() for p in file.decode(video=0)]
    assert max(shades[round(cut["time_s"] * 25) :]) < 200, "the mouth did not close"


@pytest.mark.parametrize(
    "sent", ["{", "[]", '"x"', "{}", '{"type": "dance"}', '{"type": ["end"]}', b"\x01",
             '{"type": "audio", "sample_rate": 1}', '{"type": "prompt", "text": 7}', "[" * 10_000],
)  # fmt: skip
def test_garbage_is_answered_and_changes_nothing(server, sent):
    with server.connect(server.open()) as socket:
        stream = Stream(socket)
        (socket.send_bytes if isinstance(sent, bytes) else socket.send_text)(sent)
        assert stream.until(lambda message: message["type"] == "error")["message"]
        socket.send_json({"type": "ping", "time": 5})
        assert stream.until(lambda message: message["type"] == "pong")["time"] == 5


@settings(max_examples=15)
@given(st.lists(st.one_of(st.binary(max_size=99), st.text(max_size=30)), min_size=1, max_size=8))
def test_fuzzed_messages_never_break_a_session(messages):
    with Server() as server, server.connect(server.open()) as socket:
        stream = Stream(socket)
        for message in messages:
            (socket.send_bytes if isinstance(message, bytes) else socket.send_text)(message)
        socket.send_json({"type": "close"})
        assert stream.until(lambda message: message["type"] == "closed")["reason"] == "closed"


def test_endless_garbage_ends_the_connection(server):
    with server.connect(server.open()) as socket:
        for _ in range(25):
            socket.send_text("no")
        closed = Stream(socket).until(lambda message: message["type"] == "closed")
    assert closed["reason"] == "too many errors"


def test_reconnecting_resumes_the_session():
    with Server(grace_s=60) as server:
        key = server.open()
        with server.connect(key) as socket:
            stream = Stream(socket)
            socket.send_bytes(pcm(4))
            stream.until(lambda message: message.get("state") == "speaking")
            given = stream.messages[-1]["num_frames_given"]
        server.wait(lambda: server.hub.find(key).detached is not None)
        made = server.hub.find(key).live.stats().num_frames_made
        time.sleep(0.3)
        assert server.hub.find(key).live.stats().num_frames_made <= made + 12, (
            "it computes for nobody"
        )
        with server.connect(key) as socket:
            stream = Stream(socket)
            stream.take_media(3)  # a new stream from the beginning: its first segment describes it
            assert stream.media[0][4:8] == b"ftyp"
            state = stream.until(lambda message: message["type"] == "state")
        assert state["num_frames_given"] >= given


def test_the_newer_connection_gets_the_session(server):
    key = server.open()
    with server.connect(key) as first:
        Stream(first).until(lambda message: message["type"] == "stream")
        with server.connect(key) as second:
            closed = Stream(first).until(lambda message: message["type"] == "closed")
            assert closed["reason"] == "replaced"
            Stream(second).until(lambda message: message["type"] == "stream")


def test_a_session_that_nobody_takes_is_closed():
    with Server(grace_s=0.1) as server:
        key = server.open()
        server.wait(lambda: server.hub.find(key) is None)
        assert server.model.sessions[-1].closed
        with server.connect(key) as socket, pytest.raises(WebSocketDisconnect) as gone:
            socket.receive_json()
        assert gone.value.code == 4404


def test_time_limits_end_a_session():
    for changes, reason in (({"max_session_s": 0.1}, "time limit"), ({"idle_s": 0.1}, "idle")):
        with Server(**changes) as server, server.connect(server.open()) as socket:
            closed = Stream(socket).until(lambda message: message["type"] == "closed")
            assert closed["reason"] == reason


def test_a_failed_session_says_so_and_is_forgotten(server):
    from lipcast.errors import SessionFailedError

    with server.connect(server.open()) as socket:
        server.model.sessions[-1].failure = SessionFailedError("the session has failed: lost")
        closed = Stream(socket).until(lambda message: message["type"] == "closed")
    assert closed["reason"] == "error" and server.hub.num_sessions == 0


def test_metrics_count_what_happened(server):
    with server.connect(server.open()) as socket:
        stream = Stream(socket)
        socket.send_bytes(pcm(2))
        stream.until(lambda message: message.get("state") == "speaking")
        socket.send_json({"type": "interrupt"})
        stream.until(lambda message: message.get("epoch") == 1)
        server.wait(
            lambda: b"lipcast_interrupts_total 1.0" in server.client.get("/metrics").content
        )
        text = server.client.get("/metrics").text
    for name in ("first_frame_seconds_count 1.0", "sessions 1.0", "sessions_opened_total 1.0",
                 'frames_dropped_total{reason="interrupted"}', 'memory_bytes{of="process"}',
                 "frames_per_second", "queued_frames", "block_seconds_count"):  # fmt: skip
        assert f"lipcast_{name}" in text, name


def test_the_page_needs_nothing_from_elsewhere(server):
    page = server.client.get("/").text
    assert "Content-Security-Policy" not in page and "default-src 'self'" in str(
        server.client.get("/").headers["content-security-policy"]
    )
    for name in ("app.js", "style.css", "microphone.js"):
        answer = server.client.get(f"/assets/{name}")
        assert answer.status_code == 200
        assert (
            "http://" not in answer.text.replace("http://www.w3.org", "")
            and "https://" not in answer.text
        )
    assert "synthetic" in page.lower() and "//cdn" not in page
