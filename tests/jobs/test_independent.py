"""Independent segments: pieces of the voice, fades at their borders, and the video they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lipcast
from cheap_worker import CheapRenderer
from lipcast.cli.main import main
from lipcast.jobs.independent import Edges, fade, pieces_of
from lipcast.jobs.runner import run_jobs
from lipcast.jobs.store import Store
from lipcast.media.audio import open_audio
from lipcast.media.split import cut_blocks
from lipcast.media.video import read_video

Submit = Callable[..., str]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=900), st.integers(1, 30))
def test_cuts_are_near_where_they_are_wished(power: list[float], segment: int) -> None:
    cuts = cut_blocks(np.array(power), segment)
    borders, reach = [0, *cuts], min(10, segment // 4)
    for before, cut in zip(borders, cuts, strict=False):
        assert abs(cut - before - segment) <= reach
        near = [
            power[12 * b - 1 : 12 * b + 1]
            for b in range(before + segment - reach, before + segment + reach + 1)
        ]
        assert np.mean(power[12 * cut - 1 : 12 * cut + 1]) == min(map(np.mean, near))
    left = -(-len(power) // 12) - borders[-1]
    assert left <= segment + reach and (left > 0 or not power)


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_a_fade_goes_from_one_to_the_other(length: int, seed: int) -> None:
    tail, head = np.random.default_rng(seed).integers(0, 256, (2, length, 2, 2, 3), np.uint8)
    assert np.array_equal(fade(tail, tail), tail)
    faded = fade(tail, head).astype(int)
    assert (faded >= np.minimum(tail, head)).all() and (faded <= np.maximum(tail, head)).all()
    still, other = (np.broadcast_to(picture[:1], tail.shape) for picture in (tail, head))
    # Between two still pictures every change is the same part of the whole way.
    steps = np.diff(np.concatenate([still[:1], fade(still, other), other[:1]]).astype(int), axis=0)
    way = (other[0].astype(int) - still[0]) / (length + 1)
    assert np.abs(steps - way).max() <= 1


@given(st.integers(2, 9), st.booleans(), st.booleans())
def test_edges_take_out_one_block_each(count: int, head: bool, tail: bool) -> None:
    blocks = [SimpleNamespace(frames=np.full((12, 2, 2, 3), n, np.uint8)) for n in range(count)]
    body = [int(block.frames[0, 0, 0, 0]) for block in Edges(head=head, tail=tail).body(blocks)]
    assert body == list(range(head, count - tail))


def test_pieces_share_one_block(sound: Any, tmp_path: Path) -> None:
    voice = sound(11.2)
    pieces = pieces_of(voice, tmp_path / "pieces", 1.92)
    whole = np.concatenate([chunk.samples for chunk in iter(open_audio(voice).read, None)])
    assert len(pieces) > 3
    for piece in pieces:
        audio = open_audio(piece.path)
        samples = np.concatenate([chunk.samples for chunk in iter(audio.read, None)])
        begin = piece.first_frame * 640
        assert len(samples) == piece.num_samples
        assert np.abs(samples - whole[begin : begin + len(samples)]).max() < 1e-4
    ends = [(piece.first_frame + piece.num_frames) for piece in pieces]
    assert all(end == after.first_frame + 12 for end, after in zip(ends, pieces[1:], strict=False))
    assert ends[-1] == 280 and pieces[-1].num_frames > 12


def test_a_job_of_independent_segments(store: Store, submit: Submit, tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    name = submit(output, 9.0, segment_s=1.92, independent=True)
    renderer = CheapRenderer()
    assert run_jobs(store, renderer, log=lambda _: None) == 0
    video = read_video(output)
    assert len(video.frames) == 228  # 19 whole blocks of the stand-in
    assert renderer.made.count(0) == len(store.segments(name)) >= 4
    assert {path.name for path in store.folder(name).iterdir()} == {"lock", "log", "result.json"}
    wide = tmp_path / "b.mp4"
    submit(wide, 9.0, segment_s=1.92, independent=True)
    side_by_side = CheapRenderer(0.01)
    side_by_side.width = 3
    assert run_jobs(store, side_by_side, log=lambda _: None) == 0
    assert wide.read_bytes() == output.read_bytes()
    short = submit(tmp_path / "c.mp4", 9.0, independent=True)
    assert run_jobs(store, CheapRenderer(), log=lambda _: None) == 1
    assert "at least 1.92 s" in store.job(short).error


@pytest.mark.slow
def test_the_embedded_model_fades(
    tmp_path: Path, portrait: Path, sound: Any, tiny: lipcast.Lipcast, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lipcast.api.load", lambda *_, **__: tiny)
    output, voice, place = tmp_path / "out.mp4", sound(4.1), ("--workspace", str(tmp_path / "jobs"))
    assert main((
        "job", "submit", "--image", str(portrait), "--audio", str(voice), "-o", str(output),
        "--size", "64*64", "--infer_frames", "16", "--segment", "1.92s",
        "--independent_segments", *place,
    )) == 0  # fmt: skip
    assert main(("job", "run", *place)) == 0
    video, result = read_video(output), json.loads((tmp_path / "out.mp4.json").read_text())
    assert len(video.frames) == 103 and len(result["segments"]) == 3
    changes = np.abs(np.diff(video.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    cut = result["segments"][0]["frames"]
    # The way from one pose to the other is spread over the 13 changes of the fade.
    assert changes[cut - 1 : cut + 12].max() < 3 * np.median(changes)
