"""Make speech for training with the voices that this machine has.

Input: a folder. Output: WAV files in it, a subfolder for each speaker. Voices: the package hibari-tts
(Apache-2.0, lipcast[tts]), and the programs espeak-ng, flite and text2wave (festival), which are run, not
linked. What they say is `sentences.txt`. `scripts/training_speech.py` does it from a terminal.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipcast.env import logger
from lipcast.errors import InputError, SpeechError
from lipcast.media.decode import read_sound
from lipcast.speech.sound import Sound, to_int16, wav_bytes
from lipcast.weights.disk import make_directory, replacing

SENTENCES = Path(__file__).with_name("sentences.txt")
_LOG = logger("train.speech")
_PROGRAM_S = 60
_ESPEAK_SPEAKERS = (
    ("m1", 45, 165),
    ("m3", 30, 150),
    ("m7", 55, 180),
    ("f2", 60, 170),
    ("f4", 75, 155),
)
"""Variant, pitch and words a minute."""
_FLITE_VOICES = ("awb", "rms", "kal16", "slt")


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker of one language."""

    name: str
    language: str
    say: Callable[[str], Sound]


@dataclass(frozen=True, slots=True)
class Made:
    """What `make_speech` has written, files of earlier calls included."""

    num_files: int = 0
    num_speakers: int = 0
    seconds: float = 0.0


def sentences() -> dict[str, list[str]]:
    """Return what is said, by language."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in SENTENCES.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            language, text = line.split("\t")
            found[language].append(text)
    return dict(found)


def find_voices() -> list[Voice]:
    """Return the voices that are installed, of every engine."""
    return [*_hibari(), *_espeak(), *_flite(), *_festival()]


def make_speech(folder: Path, *, voices: list[Voice] | None = None) -> Made:
    """Write what every voice says; a file that is there already is kept. A voice that fails is left out.

    Raises SpeechError where no voice is installed, OutputError where the folder cannot be written.
    """
    voices = find_voices() if voices is None else voices
    if not voices:
        raise SpeechError(
            "no voice is installed; pip install lipcast[tts], or install espeak-ng, flite or festival. "
            "Training works without: it then hears babble"
        )
    texts, made = sentences(), Made()
    for voice in voices:
        said = enumerate(texts[voice.language])
        try:
            seconds = [_written(folder / voice.name, number, text, voice) for number, text in said]
        except SpeechError as error:
            _LOG.warning("%s: %s; the voice is left out", voice.name, error)
            continue
        made = Made(
            made.num_files + len(seconds), made.num_speakers + 1, made.seconds + sum(seconds)
        )
    return made


def _written(folder: Path, number: int, text: str, voice: Voice) -> float:
    path = folder / f"{number:03d}.wav"
    if not path.is_file():
        sound = voice.say(text)
        make_directory(folder)
        with replacing(path) as file:
            file.write(wav_bytes([sound]))
    samples, rate, _ = read_sound(path)
    return len(samples) / rate


def _hibari() -> Iterator[Voice]:
    if importlib.util.find_spec("hibari") is None:
        return
    from hibari import Hibari

    engine = Hibari(voice="heart", threads=1)
    for name, speed in (("slow", 0.88), ("even", 1.0), ("quick", 1.14)):
        say = partial(_by_hibari, engine, speed)
        yield Voice(f"hibari-heart-{name}", "en", say)


def _by_hibari(engine: Callable[..., NDArray[np.float32]], speed: float, text: str) -> Sound:
    return Sound(to_int16(engine(text, speed=speed, seed=0)), 24_000)


def _espeak() -> Iterator[Voice]:
    program = shutil.which("espeak-ng")
    if program is None:
        return
    for language in sentences():
        for variant, pitch, rate in _ESPEAK_SPEAKERS:
            speaker = ["-v", f"{language}+{variant}", "-p", str(pitch), "-s", str(rate)]
            command = [program, "-b", "1", *speaker, "-f", "IN", "-w", "OUT"]
            yield Voice(f"espeak-{language}-{variant}", language, partial(_by_program, command))


def _flite() -> Iterator[Voice]:
    program = shutil.which("flite")
    for voice in _FLITE_VOICES if program else ():
        command = [str(program), "-voice", voice, "-f", "IN", "-o", "OUT"]
        yield Voice(f"flite-{voice}", "en", partial(_by_program, command))


def _festival() -> Iterator[Voice]:
    program = shutil.which("text2wave")
    if program is not None:
        yield Voice("festival", "en", partial(_by_program, [program, "-o", "OUT", "IN"]))


def _by_program(command: list[str], text: str) -> Sound:
    """Return what a program says that reads the file IN and writes the file OUT."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "text.txt"), Path(folder, "speech.wav")
        source.write_text(text + "\n", "utf-8")
        files = {"IN": str(source), "OUT": str(target)}
        try:
            done = subprocess.run(
                [files.get(word, word) for word in command],
                capture_output=True, timeout=_PROGRAM_S, check=False,
            )  # fmt: skip
            samples, rate, _ = read_sound(target)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SpeechError(f"{Path(command[0]).name} failed ({error})") from error
        except InputError as error:
            said = " ".join(done.stderr.decode("utf-8", "replace").split()) or done.returncode
            raise SpeechError(f"{Path(command[0]).name} made no speech ({said})") from error
    return Sound(to_int16(samples.mean(axis=1)), rate)
