"""A session is kept ready for whoever comes next, and stands in nobody's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from in_process import Server, Stream

from fake_live import FakeModel, FakeSession


def is_ready(server: Server) -> bool:
    return server.hub.is_prepared


def prepare(server: Server, **body: Any) -> Any:
    return server.client.post("/api/prepare", json={"portrait": "portrait_1.png", **body})


def after(server: Server, action: Callable[[], Any]) -> list[FakeSession]:
    """The sessions of the model that an action has made."""
    before = len(server.model.sessions)
    action()
    return server.model.sessions[before:]


def test_the_first_session_is_the_one_that_warmed_the_model():
    with Server(prepare=True) as server:
        assert after(server, server.open) == []
        live = server.hub.sessions()[0].live
        assert live.stats().num_frames_queued == 12 and not live.wants_tick()
        with server.connect(server.hub.sessions()[0].key) as socket:
            stream = Stream(socket)
            stream.take_media(2)
            socket.send_json({"type": "close"})
            stream.until(lambda message: message["type"] == "closed")
        # The next one is opened when the last one has gone.
        server.wait(lambda: is_ready(server))
        assert len(server.model.sessions) == 2 and server.hub.num_sessions == 0
        assert after(server, server.open) == []
    assert all(session.closed for session in server.model.sessions)


def test_another_portrait_gets_another_session_and_the_memory_of_the_first():
    with Server(FakeModel(room=1), prepare=True) as server:
        made = after(server, lambda: server.open(portrait="portrait_1.png"))
        assert len(made) == 1 and server.model.sessions[0].closed
        assert server.client.delete(f"/api/sessions/{server.hub.sessions()[0].key}").is_success
        server.wait(lambda: is_ready(server))
        assert after(server, lambda: server.open(portrait="portrait_1.png", seed=5))
    assert all(session.closed for session in server.model.sessions)


def test_what_is_chosen_is_prepared():
    with Server(prepare=True) as server:
        assert prepare(server, prompt="a calm man").json() == {"preparing": True}
        prepare(server, seed=7)
        body = {"portrait": "portrait_1.png", "seed": 7}
        server.wait(lambda: is_ready(server) and server.model.keywords[-1]["options"].seed == 7)
        assert after(server, lambda: server.open(**body)) == []
        # Whoever is served is not disturbed.
        assert prepare(server).json() == {"preparing": False}
        assert prepare(server, portrait="nobody.png").status_code == 400
        assert prepare(server, seed=-1).status_code == 422
    assert all(session.closed for session in server.model.sessions)


def test_it_can_be_switched_off():
    with Server(prepare=False) as server:
        assert server.model.sessions[0].closed and not is_ready(server)
        assert prepare(server).json() == {"preparing": False}
        assert len(after(server, server.open)) == 1


def test_it_gives_way_to_a_video_that_finds_no_memory():
    with Server(prepare=True) as server:
        server.hub.videos.on_refused()
        server.wait(lambda: server.model.sessions[0].closed)
        assert not is_ready(server)
        assert len(after(server, server.open)) == 1
