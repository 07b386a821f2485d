"""A text as a sound for a video: in memory, or kept as a file that later commands find again.

Input: a text and an engine. Output: an `AudioFile`, or the path of a WAV file. The file's name follows from
the text and from what decides the sound, so that the same command hears the same voice.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lipcast.env import cache_dir
from lipcast.errors import InputError
from lipcast.media.audio import AudioFile, open_audio
from lipcast.speech.sound import wav_bytes
from lipcast.speech.synthesis import TextToSpeech, find_tts
from lipcast.weights.disk import make_directory, replacing

MAX_TEXT = 50_000
"""Characters of a text: about an hour of speech."""
_Value = TypeVar("_Value")


def speak(
    text: str, *, tts: str | TextToSpeech = "auto", voice: str | None = None, model: str = ""
) -> AudioFile:
    """Return the speech of a text, for `generate` and `stream` to make a video with.

    tts: "auto", "hibari", "espeak", the URL of a server with OpenAI's /v1/audio/speech, or an engine of your
    own. voice: a name that the engine knows; model: one that the server knows.
    Raises SpeechError where no engine is installed or it fails, InputError where nothing is to be said.
    """
    engine = find_tts(tts, voice=voice, model=model) if isinstance(tts, str) else tts
    return open_audio(_run(_spoken(text, engine)))


def spoken_file(text: str, engine: TextToSpeech) -> Path:
    """Return a WAV file of the text, made by the engine unless an earlier command has made it."""
    key = hashlib.sha256(f"{engine.identity}\0{text}".encode("utf-8", "surrogatepass"))
    path = cache_dir() / "speech" / f"{key.hexdigest()[:32]}.wav"
    if path.is_file():
        return path
    content = _run(_spoken(text, engine))
    make_directory(path.parent)
    with replacing(path) as file:
        file.write(content)
    return path


async def _spoken(text: str, engine: TextToSpeech) -> bytes:
    if not text.strip():
        raise InputError("text: expected words to speak, got none")
    if len(text) > MAX_TEXT:
        raise InputError(
            f"text: expected at most {MAX_TEXT} characters, got {len(text)}; make several videos"
        )
    try:
        sounds = [sound async for sound in engine.speak(text)]
    finally:
        await engine.close()
    if not sounds:
        raise InputError("text: nothing of it can be spoken; expected words")
    return wav_bytes(sounds)


def _run(work: Coroutine[object, object, _Value]) -> _Value:
    """Run a coroutine to its end, also where this thread has an event loop, as notebooks have."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
