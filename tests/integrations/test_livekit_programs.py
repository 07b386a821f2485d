"""The programs of integrations/livekit, and the Python of docs/livekit.md, in a room without a server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.api import TokenVerifier
from livekit_room import RATE, Events, Peer, Room, open_live, run, say, until

from lipcast.engine.live import LiveSession
from programs import load_program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "integrations/livekit"


class PortraitModel:
    """Takes the options of a session as a model does."""

    def live(self, *, image: Any, prompt: str) -> LiveSession:
        assert Path(image).exists() and prompt
        return open_live()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and secrets of a server that nobody asks."""
    monkeypatch.setenv("LIVEKIT_API_KEY", "key")
    monkeypatch.setenv("LIVEKIT_API_SECRET", "a secret of more than 32 characters")


def test_the_agent_shows_a_face_in_its_own_process(keys: None) -> None:
    agent = load_program(FOLDER / "agent.py")

    async def test() -> None:
        session = agent.make_session()
        avatar, session.output.audio = await agent.show(PortraitModel(), Room("viewer"))
        events = Events(session.output.audio)
        context = SimpleNamespace(reasons=[])
        context.shutdown = context.reasons.append
        watching = asyncio.create_task(agent.watch(avatar, context))
        await say(session.output.audio, 0.2)
        await until(lambda: events.names == ["started", "finished"])
        avatar._room.emit("disconnected")
        await watching
        assert context.reasons == ["the avatar has ended"]
        await avatar.aclose()

    run(test)


def test_the_worker_is_the_face_of_an_agent(keys: None) -> None:
    worker = load_program(FOLDER / "worker.py")

    async def test() -> None:
        args = worker.parse(["--room", "a room"])
        here, there = Peer(args.identity, "viewer"), Peer("agent", "viewer")
        here.meet(there)
        showing = asyncio.create_task(
            worker.show(PortraitModel(), here, image=args.image, prompt=args.prompt)
        )
        voice = DataStreamAudioOutput(
            there, destination_identity=args.identity, sample_rate=RATE, wait_playback_start=True
        )
        events = Events(voice)
        await until(lambda: "lk.audio_stream" in here._streams)
        await say(voice, 0.2)
        await until(lambda: events.names == ["started", "finished"])
        assert here.attributes == {"lk.publish_on_behalf": "agent"}
        here.emit("disconnected")
        await showing

    run(test)
    token = TokenVerifier().verify(worker.make_token("a room", "lipcast-avatar"))
    assert (token.kind, token.identity, token.video.room) == ("agent", "lipcast-avatar", "a room")


def test_the_page_shows_how_to_add_a_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    page = (ROOT / "docs/livekit.md").read_text("utf-8")
    (text,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(text.replace("me.png", "portrait_0.png"), "livekit.md", "exec"), names)

    async def test() -> None:
        session = SimpleNamespace(output=SimpleNamespace(audio=None))
        avatar = await names["add_face"](session, Room("viewer"), PortraitModel())
        events = Events(session.output.audio)
        await say(session.output.audio, 0.2)
        await until(lambda: events.names == ["started", "finished"])
        await avatar.aclose()

    run(test)


@pytest.mark.parametrize("name", ["agent", "worker"])
def test_a_program_explains_itself(name: str) -> None:
    program = load_program(FOLDER / f"{name}.py")
    assert f"integrations/livekit/{name}.py" in program.__doc__
    assert f"`{name}.py`" in (FOLDER / "README.md").read_text("utf-8")
