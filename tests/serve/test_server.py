"""What a session says and sends, with a model that computes nothing."""

from __future__ import annotations

import io
import time

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import Server, Stream, pcm
from starlette.websockets import WebSocketDisconnect

from profiles import examples

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
    server.wait(lambda: server.model.sessions[-1].closed)
    assert server.hub.num_sessions == 0


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


@settings(max_examples=examples(15))
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
        server.wait(lambda: server.hub.find(key) is None and server.model.sessions[-1].closed)
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
    for name in ("app.js", "gallery.js", "style.css", "microphone.js"):
        answer = server.client.get(f"/assets/{name}")
        assert answer.status_code == 200
        assert (
            "http://" not in answer.text.replace("http://www.w3.org", "")
            and "https://" not in answer.text
        )
    assert "synthetic" in page.lower() and "//cdn" not in page


def test_commands_reach_the_session(server):
    with server.connect(server.open()) as socket:
        stream = Stream(socket)
        socket.send_json({"type": "prompt", "text": "laughing"})
        socket.send_json({"type": "pause"})
        socket.send_json({"type": "ping", "time": 1})
        stream.until(lambda message: message["type"] == "pong")
        assert len(server.model.sessions[-1].contexts) == 1
        live = server.hub.sessions()[0].live
        assert not live.wants_tick()
        socket.send_json({"type": "resume"})
        socket.send_json({"type": "key"})
        stream.until(lambda message: message["type"] == "key")
        socket.send_json({"type": "audio", "sample_rate": 16_000, "channels": 2})
        socket.send_bytes(pcm(2, rate=16_000))  # a second of two channels
        socket.send_json({"type": "finish"})
        assert stream.until(lambda message: message["type"] == "closed")["reason"] == "ended"
    assert live.stats().num_utterances == 1
