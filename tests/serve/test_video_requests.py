"""Requests for videos that are refused with a sentence, before anything is written."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from in_process import Server
from PIL import Image

from sounds import EXAMPLES

PORTRAIT = EXAMPLES / "portrait_0.png"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(workspace=tmp_path / "videos") as running:
        yield running


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "video_x%00", "incoming-left"]
)
def test_names_are_no_paths(server: Server, name: str) -> None:
    (server.hub.videos.store.workspace / "incoming-left").mkdir()
    (server.hub.videos.store.workspace / "incoming-left" / "video.mp4").write_bytes(b"x")
    for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = server.client.request(method, f"/v1/videos/{name}{tail}")
        assert answer.status_code == 404 and answer.json()["error"]["message"]
    assert (server.hub.videos.store.workspace / "incoming-left" / "video.mp4").exists()


def _large_picture(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "files", "param", "says"),
    [
        ({}, {"input_reference": None}, "input_reference", "is missing"),
        ({}, {"audio_reference": None}, "audio_reference", "is missing"),
        ({"audio_reference": "http://10.0.0.1/a.wav"}, {"audio_reference": None},
         "audio_reference", "fetches nothing"),
        ({"audio_reference": '{"audio_url": "file:///etc/passwd"}'}, {"audio_reference": None},
         "audio_reference", "fetches nothing"),
        ({"audio_reference": "data:;base64,%%%"}, {"audio_reference": None},
         "audio_reference", "base64"),
        ({"audio_reference": "{"}, {"audio_reference": None}, "audio_reference", "JSON"),
        ({"audio_reference": '{"audio_url": 3}'}, {"audio_reference": None},
         "audio_reference", "one data URL"),
        ({"size": "10000x10000"}, {}, "size", "921600 pixels"),
        ({"size": "large"}, {}, "size", "two numbers"),
        ({"seconds": "nan"}, {}, "seconds", "above 0"),
        ({"seed": "-1"}, {}, "seed", "whole number"),
        ({"num_inference_steps": "99"}, {}, "sample_steps", "1 to 8"),
        ({"prompt": "x" * 2001}, {}, "prompt", "2000"),
        ({"model": "sora-2"}, {}, "model", "has 'tiny' only"),
        ({"lora": "x"}, {}, None, "unknown field"),
        ({"prompt": ["a", "b"]}, {}, "prompt", "given twice"),
        ({}, {"prompt": b"x"}, "prompt", "a text"),
        ({}, {"input_reference": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, None, "not one"),
        ({}, {"input_reference": _large_picture(6000)}, None, "25 megapixels"),
        ({}, {"audio_reference": b"<html><script>alert(1)</script>"}, None, "none of these"),
        ({}, {"audio_reference": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n"},
         None, "none of these"),
        ({}, {"audio_reference": b"ffconcat version 1.0\nfile /etc/hostname\n"}, None, "none of these"),
        ({}, {"audio_reference": b""}, None, "none of these"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_used(server, sound, data, files, param, says):
    given = {"input_reference": PORTRAIT.read_bytes(), "audio_reference": sound(0.5).read_bytes()}
    parts = {name: content for name, content in (given | files).items() if content is not None}
    answer = server.client.post("/v1/videos", data=data, files=parts or {"x": b""})
    assert answer.status_code == 400 and says in answer.json()["error"]["message"], answer.text
    assert answer.json()["error"]["param"] == param
    assert not any(path.is_dir() for path in server.hub.videos.store.workspace.iterdir())
