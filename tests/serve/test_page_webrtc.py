"""The page over WebRTC in a real browser, with a fake microphone, directly and through a relay.

Needs a Chromium of the system; the relay needs Debian's coturn (`apt-get install coturn`).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import Running

from browser import (
    SPEAKING,
    STATE,
    TIME,
    WAIT_S,
    chromium,
    hears,
    needs_chromium,
    opened_page,
    until,
)
from loopback import CHROMIUM_FLAGS, on_loopback
from sounds import write_wav

pytest.importorskip("playwright.sync_api")
TURNSERVER = shutil.which("turnserver")
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def loopback() -> Iterator[None]:
    with on_loopback():
        yield


@pytest.fixture(scope="module")
def running(loopback: None) -> Iterator[Running]:
    with Running(grace_s=WAIT_S, max_sessions=20) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    voice = write_wav(tmp_path_factory.mktemp("voice") / "voice.wav", 4)
    with chromium(*CHROMIUM_FLAGS, voice=voice) as started:
        yield started


@contextmanager
def page_over(browser: Any, url: str, kind: str) -> Iterator[Any]:
    with opened_page(browser, url) as opened:
        opened.click("summary")
        opened.select_option("#transport", kind)
        yield opened


@pytest.fixture
def page(browser: Any, running: Running) -> Iterator[Any]:
    with page_over(browser, running.server.url, "webrtc") as opened:
        yield opened


def test_the_example_moves_and_is_heard_and_is_interrupted(page, running):
    page.click("#example")
    until(page, SPEAKING)
    until(page, f"{TIME} > 1")
    assert page.locator("#n-first").text_content().endswith("s")
    assert page.locator("#record").is_disabled()
    assert hears(page, by_stream=True)
    page.keyboard.press("Escape")
    until(page, "muted.includes(true)")
    until(page, "!document.getElementById('video').muted")
    until(page, f"{STATE}.startsWith('Listening')")
    assert sum(hosted.live.stats().num_interrupts for hosted in running.hub.sessions()) == 1
    page.click("#stop")
    until(page, f"{STATE}.startsWith('The session has ended')")


def test_the_microphone_is_a_track_and_a_lost_peer_comes_back(page):
    page.click("#microphone")
    until(page, SPEAKING)
    page.evaluate("session.socket.end(1006)")
    until(page, "said.some((text) => text.includes('Trying again in 1 s'))")
    page.evaluate("said.length = 0")
    until(page, "session.isOpen")
    until(page, SPEAKING)
    page.click("#microphone")
    until(page, f"{STATE}.startsWith('Listening')")


def test_a_relay_that_is_not_there_is_named(browser, running):
    with page_over(browser, running.server.url, "relay") as page:
        page.click("#example")
        until(page, f"{STATE}.includes('names no relay')")


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[int]:
    """A TURN server of this machine; its port."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        str(TURNSERVER), "--no-cli", "--no-tls", "--no-dtls", "--lt-cred-mech", "--user=user:password",
        "--realm=lipcast", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}",
        "--allow-loopback-peers", "--log-file=/dev/null", f"--pidfile={tmp_path / 'pid'}",
        f"--db={tmp_path / 'users.db'}", "-c", "/dev/null",
    ]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Ask for our own address (STUN) until it is answered."""
    request = bytes.fromhex("000100002112a442") + bytes(12)
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.2)
        asking.connect(("127.0.0.1", port))
        for _ in range(300):
            assert process.poll() is None, "the relay has ended"
            try:
                asking.send(request)
                assert asking.recv(2048)
                return
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.1)
    raise AssertionError("the relay does not answer")


@pytest.mark.skipif(TURNSERVER is None, reason="no turnserver on the PATH (apt-get install coturn)")
def test_through_a_relay_only(browser, loopback, relay):
    turn = {"turn_url": f"turn:127.0.0.1:{relay}", "turn_user": "user", "turn_password": "password"}
    with (
        Running(token="test-token-1", **turn) as running,
        page_over(browser, running.server.url, "relay") as page,
    ):
        page.click("#example")
        until(page, SPEAKING)
        until(page, f"{TIME} > 1")
        kinds = page.evaluate(
            """async () => {
                const all = [...(await session.socket.peer.getStats()).values()];
                const pair = all.find((each) => each.type === 'candidate-pair' && each.nominated);
                return all.find((each) => each.id === pair.localCandidateId).candidateType;
            }"""
        )
        assert kinds == "relay"
        assert "password" not in page.content()
