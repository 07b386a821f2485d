"""Who may come in, and which requests are refused."""

from __future__ import annotations

import struct
import zlib

import pytest
from in_process import BASE, SOCKETS, Server
from starlette.testclient import TestClient, WebSocketDenialResponse

from fake_live import FakeModel
from lipcast.errors import CheckpointError, UsageError
from lipcast.serve.app import make_app
from lipcast.serve.hub import Hub
from lipcast.serve.settings import ServeSettings
from sounds import EXAMPLES

TOKEN = "a-token-of-the-test"
OPEN_TO_ALL = {"host": "0.0.0.0", "token": TOKEN}
PATHS = ["/", "/healthz", "/readyz", "/metrics", "/api/info", "/openapi.json", "/assets/app.js",
         "/api/examples/portrait_0.png", "/nothing"]  # fmt: skip


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


@pytest.mark.parametrize(
    "headers", [{"host": "[::1"}, {"host": "localhost", "origin": "http://[x"}]
)
def test_addresses_that_are_none_are_refused(server, headers):
    assert server.client.get("/api/info", headers=headers).status_code == 403


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


@pytest.mark.parametrize("path", ["/api/sessions", "/api/portraits"])
def test_no_body_fills_the_memory(server, path):
    parts = (bytes(2**20) for _ in range(40))  # without a length, as an attacker would
    answer = server.client.post(path, content=parts)
    assert answer.status_code == 413 and "10 MiB" in answer.json()["error"]["message"]


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
