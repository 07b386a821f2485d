"""Real connections: the documented client, four sessions of which three misbehave, the end of the process."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
import websockets
from running import Running

from programs import started
from sounds import write_wav

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "docs" / "live-protocol.md"


@pytest.fixture
def running():
    with Running(grace_s=1, stall_s=1) as server:
        while not server.hub.is_ready:
            server.thread.join(0.02)
        yield server


def post(url: str, path: str, content: bytes) -> Any:
    request = urllib.request.Request(
        url.rstrip("/") + path, content, {"content-type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request))


def opened(url: str) -> str:
    """The address of a new session's WebSocket."""
    key = post(url, "/api/sessions", b'{"portrait": "portrait_0.png"}')["session"]
    return f"{url.replace('http', 'ws', 1)}api/sessions/{key}/stream"


def test_the_documented_client(running, tmp_path):
    code = re.findall(r"^```python\n(.*?)^```$", PROTOCOL.read_text("utf-8"), re.M | re.S)[0]
    assert len([line for line in code.splitlines() if line]) <= 32
    sound, output = write_wav(tmp_path / "hello.wav", 1.0), tmp_path / "out.mp4"
    words = [sys.executable, "-c", code, running.server.url.rstrip("/"), str(sound), str(output)]
    subprocess.run(words, check=True, timeout=200)
    with av.open(str(output)) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 36
    assert running.hub.num_sessions == 0


def test_the_protocol_names_every_message():
    page = PROTOCOL.read_text("utf-8")
    source = (ROOT / "src/lipcast/serve/connection.py").read_text("utf-8")
    talk = (ROOT / "src/lipcast/serve/talk.py").read_text("utf-8")
    sent = {*re.findall(r'type="(\w+)"', source), *re.findall(r'"type": "(\w+)"', talk)}
    taken = set(re.findall(r'^            "(\w+)": ', source, re.M)) | {"close"}
    assert len(sent) >= 10 and len(taken) >= 14
    assert all(f"`{name}`" in page for name in sent | taken)


async def _healthy(address: str) -> int:
    """Speak two seconds, and return how many pictures came."""
    video = bytearray()
    async with websockets.connect(address, max_size=None) as connection:
        for _ in range(20):
            await connection.send(bytes(9600))
            await asyncio.sleep(0.05)
        await connection.send('{"type": "finish"}')
        async for message in connection:
            if isinstance(message, bytes):
                video += message
            elif json.loads(message)["type"] == "closed":
                break
    with av.open(io.BytesIO(video)) as file:
        return sum(bool(p.to_ndarray(format="gray").mean() > 100) for p in file.decode(video=0))


def _raw(address: str) -> socket.socket:
    """A WebSocket's connection after the request, for bytes of any kind, with a window of a few bytes."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    raw.connect(("127.0.0.1", int(re.findall(r":(\d+)", address)[0])))
    path = "/" + address.split("/", 3)[3]
    raw.send(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return raw


async def _stalled(address: str) -> None:
    # Nobody reads.
    raw = _raw(address)
    await asyncio.sleep(2)
    raw.close()


async def _vanishing(address: str) -> None:
    connection = await websockets.connect(address)
    await connection.recv()
    connection.transport.abort()


async def _garbage(address: str) -> None:
    async with websockets.connect(address, max_size=None) as connection:
        for i in range(40):
            await connection.send(bytes(2 * i + 1) if i % 2 else "{" * i)
        async for message in connection:
            assert isinstance(message, bytes) or json.loads(message)["type"] != "traceback"


def test_three_bad_clients_leave_the_fourth_alone(running):
    """One reads nothing, one vanishes without a word, one sends garbage; the fourth gets all of its video."""

    async def all_together() -> int:
        addresses = [await asyncio.to_thread(opened, running.server.url) for _ in range(4)]
        clients = (_healthy, _stalled, _vanishing, _garbage)
        done = await asyncio.gather(
            *(client(address) for client, address in zip(clients, addresses, strict=True)),
            return_exceptions=True,
        )
        assert all(result is None for result in done[1:3]), done
        assert isinstance(done[0], int), done[0]
        return done[0]

    assert (
        asyncio.run(all_together()) >= 60
    )  # a pause of a busy machine may begin another utterance
    end = time.monotonic() + 120
    while not all(session.closed for session in running.model.sessions):
        assert time.monotonic() < end, "a session is still open"
        running.thread.join(0.02)
    assert running.hub.num_sessions == 0
    with urllib.request.urlopen(running.server.url + "healthz") as answer:
        assert answer.status == 200


FRAMES = {
    "unmasked": b"\x82\x04abcd",
    "reserved opcode": b"\x83\x80" + bytes(4),
    "reserved bits": b"\xf2\x80" + bytes(4),
    "a length of 2**63": b"\x82\xff\xff" + bytes(7) + bytes(4),
    "text that is no UTF-8": b"\x81\x82" + bytes(4) + b"\xff\xfe",
    "a continuation of nothing": b"\x80\x80" + bytes(4),
    "a ping in pieces": b"\x09\x80" + bytes(4),
    "a close of one byte": b"\x88\x81" + bytes(4) + b"x",
    **{f"noise {seed}": random.Random(seed).randbytes(300) for seed in range(4)},
}


def test_broken_frames_end_only_their_connection(running):
    address = opened(running.server.url)
    for name, frame in FRAMES.items():
        with _raw(address) as raw:
            raw.settimeout(30)
            raw.sendall(frame + b"\x82\x80" + bytes(4))
            raw.shutdown(socket.SHUT_WR)
            ended = b"" in iter(partial(raw.recv, 65_536), b"never")
            assert ended, name
    # The session is there, and all of its stream comes.
    assert asyncio.run(_healthy(address)) >= 24
    with urllib.request.urlopen(running.server.url + "healthz") as answer:
        assert answer.status == 200


def test_too_large_a_message_ends_only_its_connection(running):
    async def scenario() -> int:
        async with websockets.connect(opened(running.server.url), max_size=None) as connection:
            await connection.send(bytes(2 * 2**20))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                while True:
                    await connection.recv()
        return closed.value.rcvd.code

    assert asyncio.run(scenario()) == 1009
    assert running.hub.is_ready


async def _kind(connection: Any) -> str:
    message = await connection.recv()
    return "media" if isinstance(message, bytes) else json.loads(message)["type"]


@pytest.mark.slow
def test_the_command_ends_with_sigterm():
    """With the real model: SIGTERM tells the client, and the process ends with 0."""
    run = "import sys; from lipcast.cli.main import run; sys.argv[0] = 'lipcast'; run()"
    options = ["serve", "--port", "0", "--size", "64*64", "--sample_steps", "1"]
    words = [sys.executable, "-c", run, *options]
    with started(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = re.findall(r"http://\S+", process.stderr.readline())[0]
        lines = iter(process.stderr.readline, "")
        assert any(json.loads(line)["event"] == "ready" for line in lines)
        code, kinds = asyncio.run(_ended_by(process, url))
        said = process.stderr.read()
    assert code == 1012 and kinds[-1] == "closed"
    assert process.returncode == 0, said
    events = [json.loads(line) for line in said.splitlines()]
    assert any(event.get("session") == "s1" for event in events)


async def _ended_by(process: Any, url: str) -> tuple[int, list[str]]:
    """End the server while it sends; the close code and the kinds of messages that came."""
    async with websockets.connect(opened(url), max_size=None) as connection:
        await connection.send(bytes(96_000))
        kinds = [await _kind(connection)]
        while kinds.count("media") < 2:
            kinds.append(await _kind(connection))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            while True:
                kinds.append(await _kind(connection))
    return closed.value.rcvd.code, kinds
