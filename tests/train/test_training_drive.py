"""From sound to movement: the same each time, true to the voice, and changed by words."""

import numpy as np
import pytest

from lipcast_train.data.augment import recorded, retimed
from lipcast_train.data.babble import babble
from lipcast_train.data.drive import drive
from lipcast_train.data.voices import read_wave
from lipcast_train.data.words import EXPRESSIONS, MOTIONS, Mood, mood, mood_of
from sounds import DATA, EXAMPLES

CALM = Mood("neutral", "calm", "calm")


def test_a_sound_and_a_seed_give_one_movement() -> None:
    wave = babble(32_000, 1)
    first, again = (drive(wave, CALM, 3).curves() for _ in range(2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["opening_T"] == drive(wave, CALM, 4).mouth.opening_T).all()
    assert (first["yaw_T"] != drive(wave, CALM, 4).yaw_T).any()


@pytest.mark.parametrize("voice", ["speech_b_male", "speech_d_female"])
def test_the_mouth_follows_a_voice_as_the_embedded_model_was_taught(voice: str) -> None:
    track = np.load(DATA / f"{voice}_mouth_open.npy")
    opening = drive(read_wave(EXAMPLES / f"{voice}.wav"), CALM, 0).mouth.opening_T
    length = min(len(track), len(opening))
    assert np.corrcoef(track[:length], opening[:length])[0, 1] > 0.92


def test_loudness_of_the_recording_does_not_matter() -> None:
    wave = babble(32_000, 2)
    loud, soft = (drive(gain * wave, CALM, 0).mouth for gain in (1.0, 0.05))
    assert np.allclose(loud.opening_T, soft.opening_T, atol=1e-3)


def test_silence_closes_the_mouth() -> None:
    wave = babble(48_000, 3)
    wave[16_000:32_000] = 0
    opening = drive(wave, CALM, 0).mouth.opening_T
    assert opening[28:48].max() < 0.02 < 0.3 < opening[:24].max()
    assert drive(np.zeros(6_400, np.float32), CALM, 0).mouth.opening_T.max() == 0


def test_a_hiss_shows_teeth() -> None:
    rng = np.random.default_rng(0)
    hiss = np.diff(np.diff(rng.standard_normal(16_002))).astype(np.float32)
    tone = np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000).astype(np.float32)
    mouth = drive(np.concatenate([tone, hiss]), CALM, 0).mouth
    assert mouth.teeth_T[30:].mean() > mouth.teeth_T[:20].mean() + 0.3


def test_words_change_brows_corners_and_liveliness() -> None:
    wave = babble(64_000, 4)
    faces = {name: drive(wave, Mood(name, "", name), 0) for name in EXPRESSIONS}
    corners = {name: float(face.corners_T[12:].mean()) for name, face in faces.items()}
    brows = {name: float(face.brows_T[12:].mean()) for name, face in faces.items()}
    assert corners["cheerful"] > 0.5 > corners["neutral"] > -0.4 > corners["sad"]
    assert brows["surprised"] > brows["neutral"] + 0.5 > brows["angry"] + 0.9
    tilts = {name: float(face.brow_tilt_T[12:].mean()) for name, face in faces.items()}
    assert tilts["sad"] > 0.5 > tilts["neutral"] > -0.5 > tilts["angry"]
    spread = {name: drive(wave, Mood("neutral", name, ""), 0).yaw_T.std() for name in MOTIONS}
    assert 2 * spread["calm"] < spread[""] < 0.6 * spread["lively"]


def test_a_video_begins_at_rest() -> None:
    first = {
        name: curve[0]
        for name, curve in drive(babble(16_000, 5), mood_of("angry, lively"), 0).curves().items()
    }
    assert abs(first["brow_tilt_T"]) < 0.1
    assert abs(first["yaw_T"]) < 0.05


def test_a_prompt_says_which_mood_it_is() -> None:
    for seed in range(60):
        feeling = mood(np.random.default_rng(seed))
        assert mood_of(feeling.prompt) == feeling
    assert mood_of("an astronaut on the moon") == Mood("neutral", "", "an astronaut on the moon")


def test_another_recording_has_the_same_mouth_and_another_speed_has_not() -> None:
    wave, rng = babble(40_000, 6), np.random.default_rng(1)
    opening = drive(wave[:32_000], CALM, 0).mouth.opening_T
    heard = drive(recorded(wave[:32_000], rng), CALM, 0).mouth.opening_T
    assert np.corrcoef(opening, heard)[0, 1] > 0.8
    timed = retimed(wave, 32_000, np.random.default_rng(2))
    assert len(timed) == 32_000
    assert np.corrcoef(opening, drive(timed, CALM, 0).mouth.opening_T)[0, 1] < 0.6
