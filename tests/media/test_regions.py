"""Where several characters are in a picture, and what they say together."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipcast.config.generate_options import GenerateOptions
from lipcast.errors import InputError, LipcastError, UsageError
from lipcast.media import characters
from lipcast.media.audio import open_audio
from lipcast.media.characters import Character, find_regions, fit_masks, open_sound, region_masks
from lipcast.media.face_detector import FaceBox
from lipcast.media.voices import one_length, write_mix
from sounds import write_wav

PORTRAIT = Image.new("RGB", (120, 80), "white")
LEFT, RIGHT = (0, 0, 60, 80), "60,0,60,80"


def picture(path: Path, mode: str = "L", size: tuple[int, int] = (120, 80)) -> Path:
    """A mask of the right half."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, size[0] // 2 :] = 1 if mode == "P" else 255
    image = Image.fromarray(mask)
    if mode == "P":  # as segmenters write them: an index of a palette
        image = image.convert("P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    if mode == "RGBA":
        colour = Image.new("RGB", size, "black")
        colour.putalpha(image)
        image = colour
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
@pytest.mark.parametrize("size", [(120, 80), (240, 160)])
def test_masks_and_boxes_name_the_same_places(
    tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    mask = picture(tmp_path / "mask.png", mode, size)
    found = region_masks([LEFT, mask], PORTRAIT)
    assert np.array_equal(found, region_masks(["0, 0, 60, 80", RIGHT], PORTRAIT))
    assert found[0, :, :60].all() and not found[0, :, 60:].any()
    as_array = region_masks([LEFT, found[1]], PORTRAIT)
    assert np.array_equal(found, as_array)


def test_masks_are_cropped_as_the_portrait() -> None:
    masks = region_masks([LEFT, RIGHT], PORTRAIT)
    fitted = fit_masks(masks, 64, 64)
    assert fitted.shape == (2, 64, 64) and set(np.unique(fitted)) == {0, 255}
    assert (fitted[0, :, :31] == 255).all() and not fitted[0, :, 33:].any()


FACES = [FaceBox(70, 20, 30, 0.9), FaceBox(20, 25, 30, 0.8)]


def test_faces_are_counted_from_left_to_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "can_find_faces", lambda: True)
    monkeypatch.setattr(characters, "find_faces", lambda _: FACES)
    left, right = region_masks(["face1", "face2"], PORTRAIT)
    assert left[40, 35] and not left[40, 85] and right[35, 85] and not (left & right).any()
    swapped = region_masks(["face2", "face1"], PORTRAIT)
    assert np.array_equal(swapped[0], right)
    with pytest.raises(
        InputError, match="face3: 2 faces were found in the portrait, and 3 are wanted"
    ):
        region_masks(["face1", "face3"], PORTRAIT)


def test_faces_need_the_package_that_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "can_find_faces", lambda: False)
    with pytest.raises(InputError, match=r"face1: .*pip install lipcast\[lab\]"):
        region_masks(["face1", "face2"], PORTRAIT)


@pytest.mark.parametrize(
    ("regions", "kind", "sentence"),
    [
        ([LEFT], UsageError, "expected 2 to 4, got 1"),
        ([LEFT] * 5, UsageError, "expected 2 to 4, got 5"),
        ([LEFT, "50,0,60,80"], InputError, "0,0,60,80 and 50,0,60,80: these regions overlap"),
        ([LEFT, "60,0,0,80"], InputError, "60,0,0,80: this region is empty"),
        ([LEFT, "60,0,61,80"], InputError, "outside of the picture, which has 120x80 pixels"),
        ([LEFT, "-1,0,10,10"], InputError, "-1,0,10,10: this region lies outside"),
        ([LEFT, (1, 2, 3)], UsageError, "expected a box as x,y,width,height"),
        ([LEFT, "nowhere.png"], InputError, "nowhere.png"),
        ([LEFT, np.zeros((80, 120), np.uint8)], InputError, "the mask: this region is empty"),
        ([LEFT, np.ones((80, 80), np.uint8)], InputError, "80x80 pixels and the portrait 120x80"),
    ],
)
def test_regions_that_make_no_sense(
    regions: list[object], kind: type[LipcastError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        find_regions(regions, PORTRAIT, GenerateOptions())  # type: ignore[arg-type]


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "mask.png"
    broken.write_text("no picture")
    with pytest.raises(InputError, match=r"mask\.png"):
        region_masks([LEFT, broken], PORTRAIT)


def test_what_does_not_go_together() -> None:
    two = [Character(LEFT), Character(RIGHT)]
    with pytest.raises(UsageError, match="crop: face cuts out one face"):
        find_regions([LEFT, RIGHT], PORTRAIT, GenerateOptions(crop="face"))
    with pytest.raises(UsageError, match="none of them says anything"):
        open_sound(None, two, PORTRAIT, GenerateOptions())
    for audio, characters_ in ((None, ()), ("hello.wav", two)):
        with pytest.raises(UsageError, match="audio and characters: expected one of them"):
            open_sound(audio, characters_, PORTRAIT, GenerateOptions())


def read_all(voice: object) -> tuple[np.ndarray, np.ndarray]:
    chunks = []
    while chunk := voice.read():  # type: ignore[attr-defined]
        chunks.append(chunk)
    return (
        np.concatenate([chunk.samples for chunk in chunks]),
        np.concatenate([chunk.speech for chunk in chunks]),
    )


def test_silence_fills_the_shorter_sounds(tmp_path: Path) -> None:
    long, short = write_wav(tmp_path / "long.wav", 2.5), write_wav(tmp_path / "short.wav", 0.7)
    samples, speech = zip(*map(read_all, one_length([short, None, long])), strict=True)
    assert {len(x) for x in samples} == {40_000} == {len(x) for x in speech}
    assert not samples[1].any() and not samples[0][11_200:].any()
    alone = read_all(open_audio(long))
    assert np.array_equal(samples[2], alone[0]) and np.array_equal(speech[2], alone[1])


def test_the_mix_is_the_sum_at_one_rate(tmp_path: Path) -> None:
    first, second = write_wav(tmp_path / "a.wav", 2.2), write_wav(tmp_path / "b.wav", 1.1, 24_000)
    file = io.BytesIO()
    write_mix(one_length([first, second]), file)
    file.seek(0)
    with wave.open(file) as mixed:
        assert (mixed.getframerate(), mixed.getnchannels()) == (48_000, 1)
        heard = np.frombuffer(mixed.readframes(mixed.getnframes()), "<i2") / 32767
    parts = [read_all(voice)[0][:, 0] for voice in one_length([first, second])]
    assert len(heard) == 105_600
    assert np.abs(heard - np.clip(parts[0] + parts[1], -1, 1)).max() < 1e-4


def test_pieces_of_a_voice_at_another_rate_last_whole_frames(tmp_path: Path) -> None:
    """The samples for the muxer and for the speech encoder are of the same stretch of time."""
    first, second = write_wav(tmp_path / "a.wav", 2.2), write_wav(tmp_path / "b.wav", 2.2, 24_000)
    for voice in one_length([first, second]):
        chunks = []
        while chunk := voice.read():
            chunks.append((len(chunk.samples) / 1920, len(chunk.speech) / 640))
        assert chunks == [(25, 25), (25, 25), (5, 5)]
