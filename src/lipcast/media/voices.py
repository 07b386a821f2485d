"""The sounds of several characters, all of one length and one sampling rate, and the mix of them.

Input: files, or none for a character that says nothing. Output: one `VoiceSource` each, to be read once.
Silence fills what is missing of a sound, so that every character has speech features for every block.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from lipcast.config.models import SAMPLE_RATE
from lipcast.errors import UsageError
from lipcast.media.audio import AudioFile, open_audio
from lipcast.media.resample import MUX_RATES, AudioChunk, Fifo, Samples


class VoiceSource:
    """What one character says, and silence up to the common end; see `AudioSource`."""

    def __init__(self, sound: AudioFile | None, sample_rate: int) -> None:
        """`sample_rate` of the samples for the muxer, in Hz."""
        self._sound, self.sample_rate = sound, sample_rate
        self.num_channels, self.speech_mean, self.speech_std = 1, 0.0, 0.0
        self.num_samples = self.num_speech_samples = 0
        if sound is not None:
            sound.resample(sample_rate)
            self.num_channels = sound.num_channels
            self.speech_mean, self.speech_std = sound.speech_mean, sound.speech_std
            self.num_samples = sound.num_samples
            self.num_speech_samples = sound.num_speech_samples
        self._num_given = self._num_speech_given = 0

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate

    def extend(self, num_samples: int, num_speech_samples: int) -> None:
        """Let silence follow up to these lengths."""
        self.num_samples, self.num_speech_samples = num_samples, num_speech_samples

    def ready(self) -> bool:
        """Return True: a file never waits."""
        return True

    def read(self) -> AudioChunk | None:
        """Return the next second of the sound, then of the silence; None at the end."""
        chunk = None if self._sound is None else self._sound.read()
        if chunk is None:
            self._sound, chunk = None, self._silence()
        if chunk is not None:
            self._num_given += len(chunk.samples)
            self._num_speech_given += len(chunk.speech)
        return chunk

    def _silence(self) -> AudioChunk | None:
        left = self.num_samples - self._num_given
        left_speech = self.num_speech_samples - self._num_speech_given
        if left <= 0 and left_speech <= 0:
            return None
        count, count_speech = min(left, self.sample_rate), min(left_speech, SAMPLE_RATE)
        samples = np.zeros((max(0, count), self.num_channels), np.float32)
        return AudioChunk(samples, np.zeros(max(0, count_speech), np.float32))


def opened(
    sounds: Sequence[str | Path | AudioFile | None], *, clean: bool = True
) -> tuple[AudioFile | None, ...]:
    """Open the sounds that are not open yet; None stays for a character that says nothing."""
    return tuple(
        sound if sound is None or isinstance(sound, AudioFile) else open_audio(sound, clean=clean)
        for sound in sounds
    )


def one_length(
    sounds: Sequence[str | Path | AudioFile | None], *, clean: bool = True
) -> tuple[VoiceSource, ...]:
    """Open all sounds, each as long as the longest. Raises UsageError where nobody says anything."""
    found = opened(sounds, clean=clean)
    rates = {sound.sample_rate for sound in found if sound is not None}
    if not rates:
        raise UsageError("characters: none of them says anything; give at least one a sound")
    rate = rates.pop() if len(rates) == 1 else MUX_RATES[-1]
    voices = tuple(VoiceSource(sound, rate) for sound in found)
    num_samples = max(voice.num_samples for voice in voices)
    num_speech = max(voice.num_speech_samples for voice in voices)
    for voice in voices:
        voice.extend(num_samples, num_speech)
    return voices


def mixed(voices: Sequence[Samples]) -> Samples:
    """Return the sum of what is said at one time, [n, channels], within -1..1; one channel goes to both."""
    total: Samples = voices[0]
    for voice in voices[1:]:
        total = total + voice
    return np.clip(total, -1.0, 1.0)


def write_mix(voices: Sequence[VoiceSource], file: BinaryIO) -> None:
    """Write what all say together as a WAV file of 16 bits, a second at a time."""
    with wave.open(cast("str", file), "wb") as sound:
        sound.setnchannels(max(voice.num_channels for voice in voices))
        sound.setsampwidth(2)
        sound.setframerate(voices[0].sample_rate)
        for together in _together(voices):
            sound.writeframes(np.rint(together * 32767).astype("<i2").tobytes())


def _together(voices: Sequence[VoiceSource]) -> Iterator[Samples]:
    """Yield what all say together, about a second at a time."""
    waiting = [Fifo(voice.num_channels) for voice in voices]
    while any(chunks := [voice.read() for voice in voices]):
        for held, chunk in zip(waiting, chunks, strict=True):
            if chunk is not None:
                held.push(chunk.samples.T)
        count = min(held.length for held in waiting)
        yield mixed([held.pop(count).T for held in waiting])
