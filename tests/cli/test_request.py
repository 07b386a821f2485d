"""What can be known to be wrong is known before a model is loaded, in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from parsing import flags, parse
from PIL import Image

from lipcast.cli.job_request import as_job
from lipcast.cli.request import GenerateRequest, read_request
from lipcast.errors import InputError, LipcastError, OutputError, UsageError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me.png").write_bytes(b"picture")
    (tmp_path / "hello.wav").write_bytes(b"sound")
    return tmp_path


def read(**values: object) -> GenerateRequest:
    inputs = {"image": "me.png", "audio": "hello.wav"}
    return read_request(parse(*flags(**(inputs | values))))


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
        audio_scale="1.4",
    )
    options = request.options
    assert options.audio_scale == 1.4
    assert (options.size, options.infer_frames, options.sample_steps) == ("688*368", 32, 3)
    assert (options.fold_last_step, options.schedule) == (False, "wavefront")


def test_a_negative_seed_is_random_and_known(files: Path) -> None:
    assert read(base_seed="-1").randomised_fields == {"seed"}
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
def test_the_output_is_named(files: Path, given: dict[str, str], name: str) -> None:
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
        ({"num_clip": "0"}, UsageError, "num_clip: expected .* at least 1, got 0"),
        ({"output": "out.avi"}, OutputError, "out.avi: expected a name that ends in .mp4"),
        ({"output": "hello.wav"}, UsageError, "hello.wav is an input"),
        (
            {"output": "a.mp4", "save_dir": "b"},
            UsageError,
            "--output and --save_dir were both given",
        ),
        ({"output": "me.png/out.mp4"}, OutputError, "me.png/out.mp4: cannot be written"),
        ({"image": "you.png"}, InputError, "--image: you.png does not exist. Check the path."),
        (
            {"image": "folder.mp4"},
            InputError,
            "expected a picture file, but folder.mp4 is a folder",
        ),
        ({"audio": "no.wav"}, InputError, "--audio: no.wav does not exist. Check the path."),
        ({"audio": "hello.wav+hello.wav"}, UsageError, "--audio: several voices"),
    ],
)
def test_bad_values(
    files: Path, given: dict[str, str], error: type[LipcastError], sentence: str
) -> None:
    (files / "folder.mp4").mkdir()
    with pytest.raises(error, match=sentence) as caught:
        read(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["image", "audio"])
def test_both_inputs_are_needed(files: Path, name: str) -> None:
    inputs = {"image": "me.png", "audio": "hello.wav"}
    del inputs[name]
    with pytest.raises(UsageError, match=f"--{name} is missing; give an? .* with --{name} FILE"):
        read_request(parse(*flags(**inputs)))


def test_options_of_one_name_are_one_object_each(files: Path) -> None:
    request = read(vram="12GB", kv_precision="fp8", gpus="2", dit_fsdp=True, segment="2min")
    assert (request.memory.vram, request.memory.kv_precision) == ("12GB", "fp8")
    assert (request.gpus.gpus, request.gpus.dit_fsdp) == (2, True)
    assert request.segment_s == 120
    with pytest.raises(UsageError, match="--single_gpu: expected one GPU, got 2"):
        read(gpus="2", single_gpu=True)


def test_the_output_is_not_an_input(files: Path) -> None:
    (files / "talk.mp4").write_bytes(b"a video with sound")
    with pytest.raises(UsageError, match="is an input of this command"):
        read(audio="talk.mp4", output="./talk.mp4")


def test_a_job_keeps_the_adapter_of_a_folder(files: Path) -> None:
    (files / "style").mkdir()
    adapter = files / "style" / "adapter_model.safetensors"
    adapter.write_bytes(b"factors")
    job = as_job(read(lora="style:0.5\nQuark-Vision/Live-Avatar"))
    assert job["loras"] == [f"{adapter.resolve()}:0.5", "Quark-Vision/Live-Avatar"]
    assert str(adapter.resolve()) in job["sha256"]


@pytest.mark.parametrize("name", ["pose_video", "continue_from"])
def test_a_clip_that_directs_a_video_is_not_overwritten_by_it(files: Path, name: str) -> None:
    Image.new("RGB", (32, 32)).save(files / "clip.mp4", "GIF")
    assert str(getattr(read(**{name: "clip.mp4"}).direction, name)) == "clip.mp4"
    with pytest.raises(UsageError, match=r"clip\.mp4 is an input of this command"):
        read(**{name: "clip.mp4"}, output="clip.mp4")
    with pytest.raises(InputError, match="which does not exist"):
        read(**{name: "nowhere.mp4"})
    with pytest.raises(UsageError, match="give one with --pose_video"):
        read(pose_end="loop")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"prompt": "calm", "prompt_embedding": "me.png"}, "both given"),
        ({"decoder": "nowhere"}, "does not exist"),
        ({"gpus": "2", "single_gpu": True}, "expected one GPU, got 2"),
        ({"prompts": "nowhere.csv"}, "does not exist"),
    ],
)
def test_a_text_is_spoken_after_everything_is_checked(
    files: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object], error: str
) -> None:
    monkeypatch.setattr("lipcast.cli.request._spoken_file", lambda _: pytest.fail("spoken"))
    with pytest.raises(LipcastError, match=error):
        read_request(parse(*flags(image="me.png", text="Hello.", **wrong)))
