"""Text to speech: what speaks, and which one to take.

Input: a text. Output: pieces of sound while they are made. `find_tts` picks an engine: the package hibari-tts
(extra `tts`), the program espeak-ng, or a server with OpenAI's /v1/audio/speech.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator
from importlib.metadata import version
from typing import Any, Protocol

from lipcast.errors import InputError, SpeechError, UsageError
from lipcast.speech.sentences import sentences
from lipcast.speech.service import Service, is_url
from lipcast.speech.sound import Sound, SoundReader, to_int16

TTS_KEY = "LIPCAST_TTS_KEY"
_PROGRAM = "espeak-ng"
_PROGRAM_S = 60
_PART_BYTES = 2**14
_RAW_RATE = 24_000
"""Of OpenAI's format "pcm", which some servers send whatever is asked for."""


class TextToSpeech(Protocol):
    """Something that speaks."""

    @property
    def identity(self) -> str:
        """Everything besides the text that decides the sound, as one line."""

    def speak(self, text: str) -> AsyncGenerator[Sound, None]:
        """Yield the speech of a text in pieces, as they are made. Raises SpeechError."""

    async def prepare(self) -> None:
        """Load what is needed, so that the first sentence does not wait for it. Raises SpeechError."""

    async def close(self) -> None:
        """Give back what is held; a later call of `speak` takes it again."""


def find_tts(choice: str = "auto", *, voice: str | None = None, model: str = "") -> TextToSpeech:
    """Return the engine that `--tts` names; "auto" takes the best one that is installed.

    Raises SpeechError where it is not there, UsageError for an unknown name.
    """
    has_package = importlib.util.find_spec("hibari") is not None
    program = shutil.which(_PROGRAM)
    if is_url(choice):
        return SpeechServer(Service("--tts", choice, key=TTS_KEY), voice=voice, model=model)
    if choice not in {"auto", "hibari", "espeak"}:
        raise UsageError(f"--tts: expected auto, hibari, espeak or a URL, got {choice!r}")
    if has_package and choice != "espeak":
        return Hibari(voice or "heart")
    if choice == "hibari":
        raise SpeechError("--tts hibari: the package is not installed; pip install 'lipcast[tts]'")
    if program is not None:
        return Espeak(program, voice or "en")
    if choice == "espeak":
        raise SpeechError(
            "--tts espeak: there is no espeak-ng on the PATH; install it (apt install espeak-ng)"
        )
    raise SpeechError(
        "no speech synthesis was found; pip install 'lipcast[tts]', install espeak-ng, or name a server "
        "with --tts URL"
    )


class Hibari:
    """English voices on one thread, many times faster than real time; loaded when it first speaks."""

    def __init__(self, voice: str) -> None:
        """Raises UsageError for a voice that the package does not have."""
        from hibari.voices import VOICES

        if voice not in VOICES:
            raise UsageError(f"--tts_voice: hibari has {', '.join(VOICES)}; got {voice!r}")
        self._voice, self._lock = voice, threading.Lock()
        self._engine: Any = None

    @property
    def identity(self) -> str:
        return f"hibari {version('hibari-tts')} {self._voice}"

    async def speak(self, text: str) -> AsyncGenerator[Sound, None]:
        """Yield a piece for every sentence, the same ones each time."""
        num_samples = 0
        for sentence in sentences(text):
            sound = await asyncio.to_thread(self._spoken, sentence)
            num_samples += len(sound.samples)
            if len(sound.samples):
                yield sound
        if not num_samples and any(letter.isalpha() for letter in text):
            raise SpeechError(
                "hibari speaks English only, and finds no word in the text; --tts espeak and servers speak "
                "other languages"
            )

    async def prepare(self) -> None:
        """Load the voice, and speak a word with it."""
        await asyncio.to_thread(self._spoken, "Hello.")

    async def close(self) -> None:
        """Nothing is held that others could use."""

    def _spoken(self, sentence: str) -> Sound:
        with self._lock:
            try:
                if self._engine is None:
                    from hibari import Hibari as Engine

                    self._engine = Engine(voice=self._voice, threads=1)
                samples = self._engine(sentence, seed=0)
            except Exception as error:  # of a library for text of any kind
                raise SpeechError(
                    f"hibari failed ({error}); try another text, or another --tts"
                ) from error
        return Sound(to_int16(samples), self._engine.sample_rate)


class Espeak:
    """The program espeak-ng: over a hundred languages, a robot's voice."""

    def __init__(self, program: str, voice: str) -> None:
        self._program, self._voice = program, voice

    @property
    def identity(self) -> str:
        return f"{_PROGRAM} {self._voice}"

    async def speak(self, text: str) -> AsyncGenerator[Sound, None]:
        """Yield a piece for every sentence."""
        for sentence in sentences(text):
            if sentence.strip():
                sound = await asyncio.to_thread(self._spoken, sentence)
                if sound is not None:
                    yield sound

    async def prepare(self) -> None:
        """Nothing is loaded."""

    async def close(self) -> None:
        """Nothing is held."""

    def _spoken(self, sentence: str) -> Sound | None:
        command = [self._program, "--stdin", "--stdout", "-b", "1", "-v", self._voice]
        content = sentence.encode("utf-8", "replace").replace(b"\0", b" ")
        try:
            done = subprocess.run(
                command, input=content, capture_output=True, timeout=_PROGRAM_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SpeechError(f"espeak-ng failed ({error}); try another --tts") from error
        reader = SoundReader()
        sounds = reader.push(done.stdout)
        if done.returncode or (not sounds and done.stderr):
            said = " ".join(done.stderr.decode("utf-8", "replace").split())
            raise SpeechError(
                f"espeak-ng failed ({said or done.returncode}); `espeak-ng --voices` lists the voices"
            )
        return sounds[0] if sounds else None


class SpeechServer:
    """A server with OpenAI's /v1/audio/speech."""

    def __init__(self, service: Service, *, voice: str | None, model: str) -> None:
        self._service = service
        self._voice, self._model = voice or "alloy", model or "tts-1"

    @property
    def identity(self) -> str:
        return f"{self._service.host} {self._model} {self._voice}"

    async def speak(self, text: str) -> AsyncGenerator[Sound, None]:
        """Yield the sound as the server sends it."""
        document = {
            "model": self._model, "voice": self._voice, "input": text, "response_format": "wav",
        }  # fmt: skip
        has_spoken = False
        async with self._service.post("audio/speech", json=document) as response:
            reader = SoundReader(raw_rate=_raw_rate(response.headers.get("content-type", "")))
            async for part in response.aiter_bytes(_PART_BYTES):
                for sound in self._read(reader, part):
                    has_spoken = True
                    yield sound
        rest = self._read(reader, None)
        for sound in rest:
            yield sound
        if not rest and not has_spoken:
            raise self._service.unusable("no sound")

    def _read(self, reader: SoundReader, part: bytes | None) -> list[Sound]:
        """Return what a part of the file completes; None: its end."""
        try:
            return reader.finish() if part is None else reader.push(part)
        except InputError as error:
            text = self._service.said(reader.head) if reader.head.startswith(b"{") else str(error)
            raise self._service.unusable(text) from error

    async def prepare(self) -> None:
        """Nothing is asked for before there is a text."""

    async def close(self) -> None:
        """End the connections."""
        await self._service.close()


def _raw_rate(content_type: str) -> int:
    """Return the sampling rate of sound that comes without a header; 0 for a file."""
    kind, _, parameters = content_type.lower().partition(";")
    rate = re.search(r"rate=(\d{4,6})\b", parameters)
    if kind.strip() not in {"audio/pcm", "audio/x-pcm"}:
        return 0
    return int(rate[1]) if rate else _RAW_RATE
