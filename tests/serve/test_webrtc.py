"""Sessions over WebRTC: a client in this process, pictures and sound through real encoders and UDP."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import Server, Stream, pcm
from rtc_client import RtcClient

from lipcast.cli.main import main
from lipcast.engine.live_types import AVFrame
from lipcast.errors import UsageError
from lipcast.serve.rtc_media import Tracks
from lipcast.serve.settings import ServeSettings
from lipcast.serve.voice_gate import VoiceGate
from loopback import on_loopback
from profiles import examples

LOUD, BRIGHT = 3000, 200


@pytest.fixture(scope="module", autouse=True)
def loopback() -> Iterator[None]:
    with on_loopback():
        yield


def poster(server: Server, key: str) -> Callable[[dict[str, str]], Any]:
    def post(offer: dict[str, str]) -> Any:
        answer = server.client.post(f"/api/sessions/{key}/webrtc", json=offer)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return post


def run(scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(scenario())


async def settled(server: Server, condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(server.wait, condition, 60)


def spoken(seconds: float) -> np.ndarray:
    return np.frombuffer(pcm(seconds), np.int16)


@pytest.mark.parametrize("codec", ["video/VP8", "video/H264"])
def test_pictures_and_sound_in_the_codec_that_is_asked_for(server, codec):
    async def scenario() -> None:
        async with RtcClient(poster(server, server.open()), codec=codec) as client:
            answer = client.peer.remoteDescription.sdp
            assert codec.split("/")[1] in answer
            # Browsers play tracks in step where both are of one stream.
            assert len(streams := re.findall(r"^a=msid:(\S+)", answer, re.M)) == 2
            assert streams[0] == streams[1]
            stream = await client.message(lambda message: message["type"] == "stream")
            assert (stream["width"], stream["fps"], stream["synthetic"]) == (64, 25, True)
            client.send({"type": "audio", "sample_rate": 48_000})
            client.send(pcm(0.6))
            client.send({"type": "end"})
            await client.message(lambda message: message["type"] == "cut")
            await client.until(lambda: max(client.shades, default=0) > BRIGHT)
            await client.until(lambda: max(client.peaks, default=0) > LOUD)
            client.send({"type": "close"})
            closed = await client.message(lambda message: message["type"] == "closed")
            assert closed["reason"] == "closed"
        await settled(server, lambda: server.model.sessions[-1].closed)

    run(scenario)
    assert server.hub.num_sessions == 0


def test_an_interruption_is_silent_and_closes_the_mouth(server):
    async def scenario() -> None:
        async with RtcClient(poster(server, server.open())) as client:
            client.send(pcm(0.5))
            for _ in range(7):
                client.send(pcm(0.5))
            await client.until(lambda: max(client.peaks, default=0) > LOUD)
            client.send({"type": "interrupt"})
            await client.message(lambda message: message.get("epoch") == 1)
            # What was on its way has come once the mouth is closed; nothing of the old epoch follows.
            await client.until(lambda: client.shades[-1] < BRIGHT and client.peaks[-1] < LOUD)
            begin = len(client.shades), len(client.peaks)
            await client.until(lambda: len(client.peaks) > begin[1] + 25)
            assert max(client.shades[begin[0] :], default=0) < BRIGHT
            assert max(client.peaks[begin[1] :]) < LOUD
            client.send({"type": "finish"})
            await client.message(lambda message: message["type"] == "closed")

    run(scenario)


def test_the_microphone_track_is_spoken(server):
    sound = np.concatenate([np.zeros(24_000, np.int16), spoken(1.0)])

    async def scenario() -> None:
        key = server.open()
        live = server.hub.find(key).live
        async with RtcClient(poster(server, key), microphone=sound) as client:
            await client.until(lambda: max(client.shades, default=0) > BRIGHT)
            # The utterance ends with the quiet after it, without a message.
            await settled(server, lambda: live.stats().state.value == "idle")
            assert live.stats().num_utterances >= 1

    run(scenario)


def test_a_lost_peer_leaves_the_session_for_another_one():
    with Server(grace_s=300) as server:

        async def scenario() -> None:
            key = server.open()
            hosted = server.hub.find(key)
            async with RtcClient(poster(server, key)) as client:
                await client.message(lambda message: message["type"] == "stream")
                assert hosted.detached is None
            await settled(server, lambda: hosted.detached is not None)
            async with RtcClient(poster(server, key)) as client:
                await client.message(lambda message: message["type"] == "stream")
                assert hosted.detached is None and not hosted.live.has_ended

        run(scenario)


def test_a_peer_that_reports_nothing_is_left(monkeypatch):
    async def send_nothing(*_given: Any) -> None:
        return

    monkeypatch.setattr("aiortc.rtcrtpreceiver.RTCRtpReceiver._send_rtcp", send_nothing)
    with Server(grace_s=300, stall_s=0.1) as server:

        async def scenario() -> None:
            key = server.open()
            async with RtcClient(poster(server, key)):
                hosted = server.hub.find(key)
                await settled(server, lambda: hosted.detached is not None)
                assert not hosted.live.has_ended

        run(scenario)


def test_a_websocket_takes_the_session_over(server):
    async def scenario() -> None:
        key = server.open()
        async with RtcClient(poster(server, key)) as client:
            await client.message(lambda message: message["type"] == "stream")

            def connect() -> None:
                with server.connect(key) as socket:
                    Stream(socket).until(lambda message: message["type"] == "stream")

            await asyncio.to_thread(connect)
            closed = await client.message(lambda message: message["type"] == "closed")
            assert closed["reason"] == "replaced"

    run(scenario)


def test_garbage_is_answered_and_ends_the_connection_at_last(server):
    async def scenario() -> None:
        async with RtcClient(poster(server, server.open())) as client:
            client.send(b"\x01")
            client.channel.send("{")
            client.send({"type": "ping", "time": 5})
            await client.message(lambda message: message["type"] == "pong")
            assert sum(message["type"] == "error" for message in client.messages) == 2
            for _ in range(20):
                client.channel.send("no")
            closed = await client.message(lambda message: message["type"] == "closed")
            assert closed["reason"] == "too many errors"

    run(scenario)


def test_the_end_of_the_server_is_told():
    with Server() as server:

        async def scenario() -> None:
            async with RtcClient(poster(server, server.open())) as client:
                await client.message(lambda message: message["type"] == "stream")
                for hosted in server.hub.sessions():
                    server.client.portal.call(hosted.leave, "shutdown")
                closed = await client.message(lambda message: message["type"] == "closed")
                assert closed["reason"] == "shutdown"

        run(scenario)


# Offers.


async def _an_offer() -> str:
    async with asyncio.timeout(60):
        client = RtcClient(lambda _: None)
        await client.peer.setLocalDescription(await client.peer.createOffer())
        sdp = client.peer.localDescription.sdp
        await client.peer.close()
        return sdp


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (lambda sdp: "", 400, "one section of each kind"),
        (lambda sdp: sdp.replace("m=video", "m=text"), 400, "got 0 of video"),
        (lambda sdp: sdp + sdp[sdp.index("m=audio") :], 400, "got 2 of audio"),
        (lambda sdp: sdp.replace("VP8", "AV9").replace("H264", "H999"), 400, "cannot be answered"),
        (
            lambda sdp: sdp + "a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n" * 99,
            400,
            "candidates",
        ),
        (lambda sdp: sdp + "a" * 70_000, 422, "at most"),
    ],
)
def test_offers_that_cannot_be_answered(server, change, status, says):
    key = server.open()
    offer = {"type": "offer", "sdp": change(run(_an_offer))}
    answer = server.client.post(f"/api/sessions/{key}/webrtc", json=offer)
    assert answer.status_code == status and says in answer.json()["error"]["message"]
    assert server.hub.find(key) is not None


def test_offers_are_for_open_sessions(server):
    offer = {"type": "offer", "sdp": "v=0"}
    assert server.client.post("/api/sessions/none/webrtc", json=offer).status_code == 404
    assert server.client.get("/api/sessions/none/webrtc").status_code == 404


@settings(
    max_examples=examples(20),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_fuzzed_offers_are_refused_with_a_sentence(server, data):
    lines = run(_an_offer).splitlines()
    for _ in range(data.draw(st.integers(1, 6))):
        # Offers differ in length; what is drawn must not depend on it.
        at, cut = data.draw(st.integers(0, 999)) % len(lines), data.draw(st.integers(0, 120))
        lines[at] = lines[at][:cut] + data.draw(st.text(max_size=12))
    key = next((hosted.key for hosted in server.hub.sessions()), None) or server.open()
    offer = {"type": "offer", "sdp": "\r\n".join(lines)}
    answer = server.client.post(f"/api/sessions/{key}/webrtc", json=offer)
    assert answer.status_code in {200, 400, 422}, answer.text
    assert server.client.get("/healthz").status_code == 200


def test_without_the_package_the_answer_names_it(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "lipcast.serve.rtc_connection", raising=False)
    monkeypatch.setitem(sys.modules, "aiortc", None)
    with Server() as server:
        assert server.client.get("/api/info").json()["webrtc"] is False
        answer = server.client.get(f"/api/sessions/{server.open()}/webrtc")
        assert answer.status_code == 404 and "lipcast[webrtc]" in answer.json()["error"]["message"]


# STUN and TURN.

TURN = {"turn_url": "turn:relay.example.org:3478", "turn_user": "u", "turn_password": "very secret"}


def test_secrets_of_the_relay_need_the_token(caplog):
    given = ServeSettings(ice_servers=("stun:stun.example.org",), **TURN).with_token()
    assert given.token is not None and "very secret" not in repr(given)
    with caplog.at_level(logging.DEBUG), Server(**TURN, token=given.token) as server:
        bearer = {"authorization": f"Bearer {given.token}"}
        opened = server.client.post(
            "/api/sessions", json={"portrait": "portrait_0.png"}, headers=bearer
        )
        path = f"/api/sessions/{opened.json()['session']}/webrtc"
        assert server.client.get(path).status_code == 401
        found = server.client.get(path, headers=bearer).json()
        for page in ("/", "/assets/app.js", "/api/info", "/metrics"):
            assert "very secret" not in server.client.get(page, headers=bearer).text
    assert found["ice_servers"] == [
        {"urls": TURN["turn_url"], "username": "u", "credential": "very secret"}
    ]
    assert "very secret" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ice_servers": ("http://x",)}, "ice_server: expected stun:HOST:PORT"),
        ({**TURN, "turn_url": "turn:"}, "turn_url: expected turn:HOST:PORT"),
        ({**TURN, "turn_user": None}, "TURN needs all of"),
    ],
)
def test_wrong_servers_are_explained(changes, says):
    with pytest.raises(UsageError, match=says):
        ServeSettings(**changes)


def test_the_flags_of_the_command_are_checked(capsys):
    assert main(["serve", "--turn_url", "turn:relay.example.org"]) == 2
    assert "TURN needs all of" in capsys.readouterr().err
    assert main(["serve", "--ice_server", "nothing"]) == 2
    assert "ice_server" in capsys.readouterr().err


# Parts.


def av_frame(value: float) -> AVFrame:
    sound = np.full((1920, 1), value, np.float32)
    return AVFrame(np.zeros((16, 16, 3), np.uint8), sound, 48_000, 0, 0, True)


def test_a_picture_and_its_sound_have_the_same_time():
    async def scenario() -> None:
        tracks = Tracks(sample_rate=48_000)
        for slot, frame in enumerate((None, av_frame(0.5), None, av_frame(0.25))):
            tracks.begin(frame)
            heard = []
            for _ in range(2):
                tracks.put_piece()
                piece: Any = await tracks.audio.recv()
                assert piece.samples == 960
                heard.append((piece.pts, int(piece.to_ndarray().max())))
            level = 0 if frame is None else int(32_767 * frame.sound[0, 0])
            assert heard == [(slot * 1920, level), (slot * 1920 + 960, level)]
            if frame is not None:
                picture = await tracks.video.recv()
                assert float(picture.pts * picture.time_base * 25) == slot

    run(scenario)


def test_a_slow_encoder_never_grows_memory():
    async def scenario() -> None:
        tracks = Tracks(sample_rate=48_000)
        for _ in range(100):
            tracks.begin(av_frame(0.5))
            tracks.put_piece()
            tracks.put_piece()
        assert tracks.video.num_waiting == 3 and tracks.video.num_dropped == 97
        assert tracks.audio.num_waiting == 10
        tracks.cut()
        assert tracks.video.num_waiting == 0
        times = []
        for _ in range(10):
            piece: Any = await tracks.audio.recv()
            times.append(piece.pts)
            assert not piece.to_ndarray().any(), "sound of the old epoch was left"
        assert times == [960 * n for n in range(190, 200)]

    run(scenario)


def test_the_gate_tells_speech_from_the_room():
    gate, noise = VoiceGate(), np.random.default_rng(1)
    room = [(noise.normal(0, 60, 960)).astype(np.int16) for _ in range(200)]
    assert all(gate.take(piece) == ([], False) for piece in room)
    speech = spoken(1.0).reshape(-1, 960)
    results = [gate.take(piece) for piece in [*speech, *room]]
    taken = [piece for pieces, _ in results for piece in pieces]
    assert [ends for _, ends in results].count(True) == 1
    # The 0.3 s before it are kept, and 0.8 s after it.
    assert 50 + 12 <= len(taken) <= 50 + 15 + 42
    assert gate.take(room[0]) == ([], False)


def test_json_is_all_that_the_channel_carries_out(server):
    async def scenario() -> None:
        async with RtcClient(poster(server, server.open())) as client:
            state = await client.message(lambda message: message["type"] == "state")
            assert json.dumps(state) and state["epoch"] == 0

    run(scenario)
