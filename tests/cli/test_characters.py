"""`--character`: how it is read, and what is said of one that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lipcast.cli.characters import as_job as characters_as_job
from lipcast.cli.characters import read_characters
from lipcast.cli.job_request import as_job
from lipcast.cli.main import main
from lipcast.cli.request import read_request
from lipcast.errors import InputError, LipcastError, UsageError
from sounds import write_wav

BOXES = ("0,0,32,64", "32,0,32,64")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav", "odd:name.wav"):
        write_wav(tmp_path / name, 0.4)
    Image.new("RGB", (64, 64), "pink").save("two.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    Image.new("L", (64, 64), 255).save("mask:1.png")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "region", "voice"),
    [
        ("0,0,32,64:a.wav", "0,0,32,64", "a.wav"),
        ("0, 0, 32, 64", "0,0,32,64", None),
        ("face2:odd:name.wav", "face2", "odd:name.wav"),
        ("mask.png:a.wav", Path("mask.png"), "a.wav"),
        ("mask.png:odd:name.wav", Path("mask.png"), "odd:name.wav"),
        ("mask:1.png:a.wav", Path("mask:1.png"), "a.wav"),
        ("mask:1.png", Path("mask:1.png"), None),
    ],
)
def test_a_region_and_a_voice(folder: Path, text: str, region: Any, voice: str | None) -> None:
    found, other = read_characters({"character": (text, f"{BOXES[1]}:b.wav")})
    assert (found.region, found.audio) == (region, None if voice is None else Path(voice))
    assert characters_as_job([other]) == [[BOXES[1], str((folder / "b.wav").resolve())]]


@pytest.mark.parametrize(
    ("flags", "kind", "sentence"),
    [
        ({"character": BOXES[:1]}, UsageError, "expected 2 to 4, got 1"),
        ({"character": BOXES}, UsageError, "--character: none of them says anything"),
        ({"character": (*BOXES[:1], ":a.wav")}, UsageError, "expected REGION:VOICE such as"),
        ({"character": (*BOXES[:1], "face1:no.wav")}, InputError, r"no\.wav does not exist"),
        ({"character": (*BOXES[:1], "no.png:a.wav")}, InputError, r"no\.png does not exist"),
        ({"character": BOXES, "text": "Hello."}, UsageError, "a text is spoken by one person"),
        ({"character": BOXES, "audio": Path("a.wav")}, UsageError, "1 voices and there are 2 regions"),
        (
            {"character": (f"{BOXES[0]}:a.wav", BOXES[1]), "audio": Path("a.wav+b.wav")},
            UsageError, "--character and --audio both give voices",
        ),
        ({"audio": Path("a.wav+b.wav")}, UsageError, "need a --character REGION for each"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(
    folder: Path, flags: dict[str, Any], kind: type[LipcastError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        read_request({"image": Path("two.png"), "output": "out.mp4", **flags})


def test_voices_joined_as_in_the_public_scripts(folder: Path) -> None:
    flags = {"image": Path("two.png"), "output": "out.mp4", "character": BOXES}
    request = read_request({**flags, "audio": Path("a.wav+b.wav")})
    assert [str(each.audio) for each in request.characters] == ["a.wav", "b.wav"]
    job = as_job(request)
    assert [region for region, _ in job["characters"]] == list(BOXES)
    assert {Path(path).name for path in job["sha256"]} == {"two.png", "a.wav", "b.wav"}
    with pytest.raises(UsageError, match="the voices of several characters cannot be cut"):
        as_job(request, independent=True)


def test_overlapping_regions_are_refused_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--image", "two.png", "-o", "out.mp4", "--character", "0,0,40,64:a.wav"]
    assert main([*words, "--character", "30,0,30,64:b.wav"]) == 3
    assert "these regions overlap" in capsys.readouterr().err
    assert not (folder / "out.mp4").exists()
