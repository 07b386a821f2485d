"""What can be known to be wrong is known before a model is loaded, in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lipcast.cli.request import GenerateRequest, read_request
from lipcast.cli.validate import RawFlags
from lipcast.errors import InputError, LipcastError, NotBuiltError, OutputError, UsageError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me.png").write_bytes(b"picture")
    (tmp_path / "hello.wav").write_bytes(b"sound")
    return tmp_path


def read(**given: RawFlags) -> GenerateRequest:
    inputs: dict[str, RawFlags] = {"image": "me.png", "audio": "hello.wav"}
    return read_request(inputs | given)


def test_defaults(files: Path) -> None:
    request = read()
    assert request.output == Path("out.mp4")
    assert (request.model, request.device, request.precision) == ("tiny", None, None)
    assert request.options.seed == 420
    assert sorted(path.name for path in files.iterdir()) == ["hello.wav", "me.png"]


def test_options_arrive(files: Path) -> None:
    request = read(
        size="688*368",
        infer_frames="32",
        sample_steps="3",
        fold_last_step=False,
        schedule="wavefront",
    )
    options = request.options
    assert (options.size, options.infer_frames, options.sample_steps) == ("688*368", 32, 3)
    assert (options.fold_last_step, options.schedule) == (False, "wavefront")


def test_a_negative_seed_is_drawn_and_known(files: Path) -> None:
    seeds = {read(base_seed="-1").options.seed for _ in range(4)}
    assert len(seeds) > 1
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"output": "deep/er/out.mp4"}, "deep/er/out.mp4"),
        ({"output": "talk"}, "talk.mp4"),
        ({"output": "TALK.MP4"}, "TALK.MP4"),
        ({"save_dir": "videos", "sample_steps": "3", "prompt": "A man: /etc?"},
         r"videos/\d{8}_\d{6}_3step_A_man___etc.mp4"),
        ({"save_dir": "videos"}, r"videos/\d{8}_\d{6}.mp4"),
    ],
)  # fmt: skip
def test_the_output_is_named(files: Path, given: dict[str, RawFlags], name: str) -> None:
    output = read(**given).output
    assert re.fullmatch(name, str(output))
    assert output.parent.is_dir()
    assert not output.exists()


def test_an_existing_output_is_left_alone_until_there_is_a_frame(files: Path) -> None:
    (files / "out.mp4").write_bytes(b"precious")
    read()
    assert (files / "out.mp4").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"infer_frames": "30"}, UsageError, "infer_frames: expected a multiple of 4 .* got 30"),
        ({"infer_frames": "8"}, UsageError, "from 12 up, got 8"),
        ({"size": "abc"}, UsageError, 'size: expected two numbers such as "704\\*384", got "abc"'),
        ({"size": "8*8"}, UsageError, "size: expected at least"),
        ({"sample_steps": "0"}, UsageError, "sample_steps: expected 1 to 8, got 0"),
        (
            {"sample_steps": "many"},
            UsageError,
            '--sample_steps: expected a whole number, got "many"',
        ),
        ({"num_clip": "0"}, UsageError, "num_clip: expected .* at least 1, got 0"),
        ({"schedule": "random"}, UsageError, "schedule: expected one of sequential, wavefront"),
        ({"anchor": "x"}, UsageError, "anchor: expected one of"),
        ({"output": "out.avi"}, OutputError, "out.avi: expected a name that ends in .mp4"),
        ({"output": "hello.wav"}, UsageError, "another file than the input"),
        ({"output": "a.mp4", "save_dir": "b"}, UsageError, "--output or --save_dir, got both"),
        ({"output": "me.png/out.mp4"}, OutputError, "me.png/out.mp4: expected to write"),
        ({"output": "folder.mp4"}, OutputError, "folder.mp4: .* Is a directory"),
        (
            {"image": "you.png"},
            InputError,
            "--image: expected a picture, found nothing there: you.png",
        ),
        ({"image": "folder.mp4"}, InputError, "--image: expected a picture, found a folder"),
        ({"audio": "no.wav"}, InputError, "--audio: expected a sound, found nothing there: no.wav"),
        ({"audio": "hello.wav+hello.wav"}, NotBuiltError, "--audio: several voices"),
    ],
)
def test_bad_values(
    files: Path, given: dict[str, RawFlags], error: type[LipcastError], sentence: str
) -> None:
    (files / "folder.mp4").mkdir()
    with pytest.raises(error, match=sentence) as caught:
        read(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "what"), [("image", "a picture"), ("audio", "a sound")])
def test_both_inputs_are_needed(files: Path, name: str, what: str) -> None:
    inputs: dict[str, RawFlags] = {"image": "me.png", "audio": "hello.wav"}
    del inputs[name]
    with pytest.raises(UsageError, match=f"--{name}: expected {what}, got none"):
        read_request(inputs)


def test_the_output_is_not_an_input(files: Path) -> None:
    (files / "talk.mp4").write_bytes(b"a video with sound")
    with pytest.raises(UsageError, match="another file than the input"):
        read(audio="talk.mp4", output="./talk.mp4")
