"""The whole evaluation of files, through the command line."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn import drawn_clip, drawn_face, syllable_opening, write_voice
from lipcast.cli.main import main
from lipcast.lab import sync
from lipcast.lab.characters import lip_sync_of_characters
from lipcast.lab.evaluate import EvaluationInput, evaluate
from lipcast.lab.footage import Footage
from lipcast.lab.results import read_results
from lipcast.media.characters import Character
from lipcast.media.video import VideoWriter

NUM_FRAMES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with its voice, the same a little darker and silent, the voice alone, the portrait."""
    folder = tmp_path_factory.mktemp("evaluate")
    opening = syllable_opening(NUM_FRAMES)
    voice = write_voice(folder / "voice.wav", opening)
    frames = np.stack(drawn_clip(opening))
    with wave.open(str(voice)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    write(folder / "clip.mp4", frames, samples)
    write(folder / "dark.mp4", (frames * 0.9).astype(np.uint8), samples * 0)
    Image.fromarray(drawn_face(0)).save(folder / "portrait.png")
    return folder


def write(path: Path, frames: np.ndarray, samples: np.ndarray) -> None:
    height, width = frames.shape[1:3]
    writer = VideoWriter(path, width=width, height=height, sample_rate=16_000, num_channels=1)
    with writer:
        writer.write(frames, samples.astype(np.float32)[:, None])


def document(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_is_measured(folder, capsys):
    found = document(
        [
            str(folder / "clip.mp4"), "--reference", str(folder / "portrait.png"),
            "--against", str(folder / "dark.mp4"), "--infer_frames", "24",
        ],
        capsys,
    )  # fmt: skip
    assert (found["num_frames"], found["width"], found["fps"]) == (NUM_FRAMES, 128, 25)
    values = {(m["group"], m["name"]): m["value"] for m in found["metrics"]}
    assert values["lip sync", "correlation"] > 0.9
    assert values["lip sync", "offset"] == 0
    assert values["drift", "likeness to the portrait"] > 0.8
    assert 15 < values["against the other", "PSNR"] < 30
    assert all(len(curve) == NUM_FRAMES for curve in found["curves"].values())
    assert {"mouth", "loudness", "change", "PSNR"} <= set(found["curves"])
    for metric in found["metrics"]:
        assert (metric["value"] is None) == bool(metric["reason"]), metric


def test_shifted_sound_is_seen(folder, tmp_path):
    late = write_voice(tmp_path / "late.wav", syllable_opening(NUM_FRAMES), delay_frames=4)
    shifted = evaluate(EvaluationInput(folder / "clip.mp4", audio=late))
    assert shifted.value("lip sync", "offset") == -4
    own = evaluate(EvaluationInput(folder / "clip.mp4"))
    assert own.value("lip sync", "correlation") > shifted.value("lip sync", "correlation") + 0.3


def test_silence_is_not_a_number(folder, capsys):
    assert main(["evaluate", str(folder / "dark.mp4")]) == 0
    assert "n/a: the sound is silent" in capsys.readouterr().out


def test_results_are_added_to_a_file_that_report_reads(folder, tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    results.write_text('{"kind": "bench", "cell": {"infer_frames": 48')  # a sweep that was killed
    add = ["evaluate", str(folder / "clip.mp4"), "--append", str(results), "--infer_frames", "24"]
    assert main([*add, "--made_with", "sample-steps=3, enable_online_decode=True, size=64*64"]) == 0
    assert main(add) == 0
    found = read_results([results])
    assert [record["kind"] for record in found] == ["quality"] * 2
    made = {"infer_frames": 24, "sample_steps": 3, "enable_online_decode": True, "size": "64*64"}
    assert [record["cell"] for record in found] == [made, {"infer_frames": 24}]
    page = tmp_path / "page.html"
    assert main(["report", str(results), "-o", str(page)]) == 0
    assert "lip sync" in page.read_text("utf-8")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["clip.mp4", "--made_with", "size=64*64"], 2, "needs --append"),
        (
            ["clip.mp4", "--append", "r.jsonl", "--made_with", "colour=3"],
            2,
            "name=value; unknown flag 'colour'",
        ),
        (
            ["clip.mp4", "--append", "r.jsonl", "--made_with", "sample_steps=x"],
            2,
            "'x' is not a valid integer",
        ),
        (["clip.mp4", "--append", "no/such/r.jsonl"], 6, "cannot be written"),
        (["none.mp4"], 3, "none.mp4"),
        (["portrait.png", "--infer_frames", "0"], 2, "at least 1"),
        (["voice.wav"], 3, "without pictures"),
    ],
)
def test_errors_say_what_is_wrong(folder, monkeypatch, capsys, arguments, exit_code, words):
    monkeypatch.chdir(folder)
    assert main(["evaluate", *arguments]) == exit_code
    assert words in capsys.readouterr().err


def test_each_voice_of_several_characters_is_decoded_once(folder, tmp_path, monkeypatch):
    opened = []

    def open_audio(path):
        opened.append(path)
        return sync_open(path)

    sync_open = sync.open_audio
    monkeypatch.setattr(sync, "open_audio", open_audio)
    openings = syllable_opening(NUM_FRAMES), syllable_opening(NUM_FRAMES)[::-1].copy()
    voices = [write_voice(tmp_path / f"{n}.wav", opening) for n, opening in enumerate(openings)]
    frames = np.concatenate([np.stack(drawn_clip(opening)) for opening in openings], axis=2)
    height, width = frames.shape[1], frames.shape[2] // 2
    boxes = (0, 0, width, height), (width, 0, width, height)
    characters = [Character(box, voice) for box, voice in zip(boxes, voices, strict=True)]
    found = lip_sync_of_characters(Footage.of_frames(frames), characters)
    own = [metric.value for metric in found if metric.name == "own voice"]
    assert len(found) == 4 and min(own) > 0.9
    assert opened == voices
