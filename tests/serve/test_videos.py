"""`/v1/videos` with OpenAI's own client, on a server whose videos cost nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import openai
import pytest
from in_process import BASE, Drawing, Server
from PIL import Image

from certificates import write_certificate
from lipcast.errors import AdmissionError, OutputError
from lipcast.jobs.store import Store
from lipcast.media.signing import SigningKey, read_manifest
from sounds import EXAMPLES

PORTRAIT = EXAMPLES / "portrait_0.png"
Make = Callable[..., Any]


@pytest.fixture
def at(tmp_path: Path) -> dict[str, Any]:
    return {"workspace": tmp_path / "videos", "segment_s": 0.96}


@pytest.fixture
def server(at: dict[str, Any]) -> Iterator[Server]:
    with Server(**at) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_deprecation() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI has ended its own service
        yield


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="unused", base_url=f"{BASE}/v1", http_client=server.client, max_retries=0
    )


def voice(path: Path) -> str:
    address = "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode()
    return json.dumps({"audio_url": address})


@pytest.fixture
def make(sound: Any) -> Make:
    def make(server: Server, length_s: float = 2.4, **more: Any) -> Any:
        body = {"audio_reference": voice(sound(length_s)), **more.pop("body", {})}
        asked = {"prompt": "calm", "input_reference": PORTRAIT, **more}
        return client(server).videos.create(**asked, extra_body=body)

    return make


def status(server: Server, name: str) -> str:
    return client(server).videos.retrieve(name).status


class Held(Drawing):
    """Waits at the second block until it is let go."""

    def __init__(self, model: Any, on_block: Callable[[int], None]) -> None:
        super().__init__(model, self._wait)
        self._tell, self.num_blocks, self.go, self.here = (
            on_block,
            0,
            threading.Event(),
            threading.Event(),
        )

    def _wait(self, num_frames: int) -> None:
        self.num_blocks += 1
        if self.num_blocks == 2:
            self.here.set()
            assert self.go.wait(60)
        self._tell(num_frames)


@pytest.fixture
def held() -> Iterator[tuple[list[Held], Callable[..., Held]]]:
    made: list[Held] = []

    def make_renderer(model: Any, on_block: Callable[[int], None]) -> Held:
        made.append(Held(model, on_block))
        return made[-1]

    yield made, make_renderer
    for renderer in made:
        renderer.go.set()


def test_create_poll_download_and_delete(server: Server, sound: Any) -> None:
    videos = client(server).videos
    made = videos.create_and_poll(
        prompt="calm", model="tiny", input_reference=PORTRAIT, size="128x128",
        extra_body={"audio_reference": voice(sound(2.4)), "seed": 7}, poll_interval_ms=20,
    )  # fmt: skip
    assert (made.status, made.progress, made.object, made.seconds) == (
        "completed",
        100,
        "video",
        "2.4",
    )
    assert made.completed_at is not None and made.expires_at == made.completed_at + 86_400
    extra = made.model_extra or {}
    assert (extra["num_frames"], extra["fps"], extra["duration_s"]) == (60, 25, 2.4)
    job = server.hub.videos.store.job(made.id)
    assert job.request["options"]["seed"] == 7 and job.request["options"]["size"] == "128x128"
    content = videos.download_content(made.id).read()
    with av.open(io.BytesIO(content)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 60
        assert "trainedAlgorithmicMedia" in file.metadata["comment"]
    for variant, sides in (("thumbnail", (64, 64)), ("spritesheet", (320, 256))):
        picture = videos.download_content(made.id, variant=variant).read()
        assert Image.open(io.BytesIO(picture)).size == sides
    assert videos.delete(made.id).deleted
    assert not server.hub.videos.store.folder(made.id).exists()
    with pytest.raises(openai.NotFoundError) as gone:
        videos.retrieve(made.id)
    assert gone.value.code == "not_found" and gone.value.type == "invalid_request_error"


def test_a_part_of_a_video(server: Server, make: Make) -> None:
    name = make(server).id
    server.wait(lambda: status(server, name) == "completed")
    path = f"/v1/videos/{name}/content"
    whole = server.client.get(path)
    part = server.client.get(path, headers={"range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == whole.content[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    assert "attachment" in whole.headers["content-disposition"]
    beyond = server.client.get(path, headers={"range": "bytes=99999999-"})
    assert beyond.status_code == 416


def test_files_and_data_urls_make_the_same_video(server: Server, sound: Any) -> None:
    path = sound(2.4)
    picture = "data:image/png;base64," + base64.b64encode(PORTRAIT.read_bytes()).decode()
    address = json.loads(voice(path))["audio_url"]
    ways: list[dict[str, Any]] = [
        {"files": {"input_reference": PORTRAIT.open("rb"), "audio_reference": path.open("rb")}},
        {"files": {"input_reference": PORTRAIT.open("rb")}, "data": {"audio_reference": voice(path)}},
        {"files": {"source_audio": path.open("rb")},
         "data": {"image_reference": json.dumps({"image_url": picture})}},
        {"files": {"source_audio": path.open("rb")}, "data": {"input_reference[image_url]": picture}},
        {"files": {"input_reference": PORTRAIT.open("rb")}, "data": {"audio_reference": address}},
    ]  # fmt: skip
    names = []
    for way in ways:
        answer = server.client.post("/v1/videos", **way)
        assert answer.status_code == 200, answer.text
        names.append(answer.json()["id"])
        for file in way["files"].values():
            file.close()
    server.wait(lambda: all(status(server, name) == "completed" for name in names))
    made = {server.client.get(f"/v1/videos/{name}/content").content for name in names}
    assert len(made) == 1 and len(set(names)) == len(ways)


def test_videos_are_signed(at: Any, make: Make, tmp_path: Path) -> None:
    signing = SigningKey(*write_certificate(tmp_path / "c"))
    with Server(signing=signing, **at) as server:
        name = make(server).id
        server.wait(lambda: status(server, name) == "completed")
        (tmp_path / "got.mp4").write_bytes(client(server).videos.download_content(name).read())
    assert read_manifest(tmp_path / "got.mp4")["validation_state"] == "Valid"


def test_seconds_cut_the_voice(server: Server, make: Make) -> None:
    made = make(server, 4.0, seconds="1.44")
    assert made.seconds == "1.44"
    server.wait(lambda: status(server, made.id) == "completed")
    content = client(server).videos.download_content(made.id).read()
    with av.open(io.BytesIO(content)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 36
    assert make(server, 1.0, seconds="12").seconds == "1"


def test_pages_of_a_list(server: Server, make: Make) -> None:
    assert client(server).videos.list().data == []
    names = [make(server, 0.5).id for _ in range(5)]
    videos = client(server).videos
    assert [video.id for video in videos.list(limit=2)] == names[
        ::-1
    ]  # the client asks for all pages
    page = videos.list(limit=2, order="asc")
    assert (
        [video.id for video in page.data] == names[:2]
        and page.has_more
        and page.last_id == names[1]
    )
    assert [video.id for video in videos.list(after=names[2], order="asc").data] == names[3:]
    assert videos.list(limit=0).data == []
    with pytest.raises(openai.NotFoundError):
        videos.list(after="video_none")
    with pytest.raises(openai.UnprocessableEntityError):
        videos.list(limit=101)


def test_a_video_that_is_being_made_is_aborted(at: Any, make: Make, held: Any) -> None:
    made, make_renderer = held
    with Server(make_renderer=make_renderer, **at) as server:
        name = make(server, 4.8).id
        server.wait(lambda: made and made[0].here.is_set())
        now = server.client.get(f"/v1/videos/{name}")
        assert now.json()["status"] == "in_progress" and 0 < now.json()["progress"] < 50
        assert now.headers["openai-poll-after-ms"] == "1000"
        early = server.client.get(f"/v1/videos/{name}/content")
        assert early.status_code == 404 and "not finished" in early.json()["error"]["message"]
        assert client(server).videos.delete(name).deleted
        assert server.client.get(f"/v1/videos/{name}").status_code == 404
        made[0].go.set()
        server.wait(lambda: not server.hub.videos.store.folder(name).exists())
        assert made[0].num_blocks == 2, "it went on"
        after = make(server, 0.5).id
        server.wait(lambda: status(server, after) == "completed")


def test_a_queue_that_is_full(at: Any, make: Make, held: Any) -> None:
    made, make_renderer = held
    with Server(make_renderer=make_renderer, max_videos=1, **at) as server:
        make(server)
        server.wait(lambda: made and made[0].here.is_set())
        waiting = make(server).id
        with pytest.raises(openai.RateLimitError, match="1 videos wait already") as full:
            make(server)
        assert int(full.value.response.headers["retry-after"]) > 0
        assert full.value.code == "queue_full"
        client(server).videos.delete(waiting)
        make(server)
        made[0].go.set()


def test_a_key_gives_the_same_video_again(server: Server, make: Make) -> None:
    headers = {"Idempotency-Key": "order 66"}
    first = make(server, extra_headers=headers)
    assert make(server, extra_headers=headers).id == first.id
    assert make(server).id != first.id
    for changed in ({"prompt": "angry"}, {"length_s": 1.0}, {"body": {"seed": 3}}):
        with pytest.raises(openai.BadRequestError, match="choose another key"):
            make(server, extra_headers=headers, **changed)
    assert len(client(server).videos.list().data) == 2
    client(server).videos.delete(first.id)
    server.wait(lambda: not server.hub.videos.store.folder(first.id).exists())
    assert make(server, extra_headers=headers).id == first.id


def test_the_next_server_goes_on(at: Any, make: Make, held: Any, tmp_path: Path) -> None:
    made, make_renderer = held
    with Server(**at) as server:
        whole = make(server, 4.8).id
        server.wait(lambda: status(server, whole) == "completed")
        expected = server.client.get(f"/v1/videos/{whole}/content").content
    with Server(make_renderer=make_renderer, **at) as server:
        name, later = make(server, 4.8).id, make(server, 0.5).id
        server.wait(lambda: made and made[0].here.is_set())
        made[0].go.set()
    assert Store(at["workspace"]).job(name).state in {"waiting", "finished"}
    with Server(**at) as server:
        server.wait(lambda: status(server, later) == "completed")
        assert server.client.get(f"/v1/videos/{name}/content").content == expected


def test_a_video_that_fails_says_why(at: Any, make: Make) -> None:
    class Fails(Drawing):
        def render(self, request: Any, task: Any) -> Any:
            error = (
                OutputError("the disk is full; make room") if request["prompt"] == "calm" else None
            )
            raise error or ZeroDivisionError("a mistake")

    with Server(make_renderer=Fails, **at) as server:
        known, mistake = make(server).id, make(server, prompt="x").id
        server.wait(lambda: status(server, mistake) == "failed")
        video = client(server).videos.retrieve(known)
        assert video.error is not None and video.error.message == "the disk is full; make room"
        answer = server.client.get(f"/v1/videos/{known}/content")
        assert answer.status_code == 422 and "disk is full" in answer.json()["error"]["message"]
        other = client(server).videos.retrieve(mistake).error
        assert other is not None and "its log says why" in other.message
        assert client(server).videos.delete(known).deleted


def test_memory_that_live_sessions_hold_is_waited_for(
    at: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipcast.serve.video_queue._GIVE_WAY_S", 0.01)
    refusals = iter([AdmissionError("does not fit beside the 1 open")] * 3)

    class Refused(Drawing):
        def render(self, request: Any, task: Any) -> Any:
            for refusal in refusals:
                raise refusal
            return super().render(request, task)

    with Server(make_renderer=Refused, **at) as server:
        name = make(server).id
        server.wait(lambda: status(server, name) == "completed")
        assert next(refusals, None) is None


def test_a_refused_live_session_gets_the_memory_of_the_next_segment(
    at: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_live import FakeModel

    with Server(FakeModel(room=1), **at) as server:
        server.open()
        refused = server.client.post("/api/sessions", json={"portrait": "portrait_0.png"})
        assert refused.status_code == 503
        name = make(server, 4.8).id
        server.wait(lambda: status(server, name) == "in_progress")
        assert client(server).videos.retrieve(name).progress == 0
        monkeypatch.setattr(server.hub.videos, "_refused_until", 0.0)
        assert server.hub.sessions()


def test_videos_are_kept_for_a_time(at: Any, make: Make) -> None:
    with Server(**at) as server:
        name = make(server).id
        server.wait(lambda: status(server, name) == "completed")
    (at["workspace"] / "incoming-left").mkdir()
    os.utime(at["workspace"] / "incoming-left", (0, 0))
    with Server(**at, keep_videos_s=1e-3) as server:
        server.wait(lambda: not any(path.is_dir() for path in at["workspace"].iterdir()))
        assert client(server).videos.list().data == []


def test_a_sound_that_is_too_long(at: Any, make: Make) -> None:
    with Server(**at, max_video_s=2, max_voice_bytes=10**6, max_upload_bytes=10**6) as server:
        with pytest.raises(openai.BadRequestError, match="at most 2 s"):
            make(server, 3.0)
        assert make(server, 3.0, seconds="100").seconds == "2"
        answer = server.client.post("/v1/videos", files={"audio_reference": bytes(3 * 10**6)})
        assert answer.status_code == 413
        answer = server.client.post("/v1/videos", json={"prompt": "calm"})
        assert answer.status_code == 415 and "multipart" in answer.json()["error"]["message"]


def test_speech_goes_before_videos(at: Any, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipcast.serve.video_queue._GIVE_WAY_S", 60.0)
    with Server(**at) as server:
        answers = iter([True, True, True, False])
        server.hub.videos.is_speaking = lambda: next(answers)
        name = make(server, 0.48).id
        server.wait(lambda: status(server, name) == "completed")
        assert next(answers, None) is None  # its only block waited for the end of speech
