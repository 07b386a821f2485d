"""Detection of sounds that have steady noise and no voice.

Input: 16 kHz mono, in blocks of any size. Output: a yes or no at the end. The speech encoder scales every
sound to one level, so that room noise alone would move a mouth as speech does. Noise is told from a voice by
two marks that do not depend on the level: its frames are equally loud, and next to none of them has a pitch.
A hum has a pitch, and a steadiness that no voice has. All is looked for after pre-emphasis, without which the
rumble of a room looks like a pitch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.media.resample import Samples

_FRAME = SAMPLE_RATE // VIDEO_FPS
_PRE_EMPHASIS = 0.97
_LAGS = SAMPLE_RATE // 400, SAMPLE_RATE // 70
"""Periods of voices, in samples: 400 to 70 Hz."""
_BAND_HZ = 90, 1000
_PITCH = 0.5
"""Autocorrelation at the period, within the band, from which a frame has a pitch. Of white, pink and brown
noise no frame in 1000 reaches it; of voices in noise as loud as they are, 13 to 60 % do."""
_MAX_PITCHED, _MAX_PITCHED_SHARE = 3, 0.002
"""Frames with a pitch that noise may have: so many, and that share. A word has about ten."""
_MAX_SPREAD_DB = 8.0
"""Between the 10th and the 90th percentile of the frames: rooms have 1 to 6, whispers 16, voices 20 to 50."""
_HUM_SPREAD_DB, _HUM_PITCHED_SHARE = 0.5, 0.9
_MIN_FRAMES = VIDEO_FPS // 2
_SILENT_DB = -115.0
"""Digital silence, after pre-emphasis."""
_ENOUGH_PITCHED = 250
"""Frames with a pitch (10 s of voice) after which no further one is looked for."""


class VoiceScan:
    """Collects what tells noise from a voice: `push` blocks, then ask `is_noise`."""

    def __init__(self) -> None:
        self._rest: Samples = np.zeros(0, np.float32)
        self._levels: list[NDArray[np.float64]] = []
        self._num_pitched = self._num_checked = 0

    def push(self, speech: Samples) -> None:
        """Add [n] samples at 16 kHz."""
        wave = np.concatenate([self._rest, speech])
        count = (len(wave) - 1) // _FRAME
        if count < 2:
            self._rest = wave
            return
        emphasised = (wave[1:] - np.float32(_PRE_EMPHASIS) * wave[:-1])[: count * _FRAME]
        self._rest = wave[count * _FRAME :]
        frames = emphasised.reshape(count, _FRAME)
        levels = 10 * np.log10((frames**2).mean(axis=1, dtype=np.float64) + 1e-16)
        self._levels.append(levels)
        if self._num_pitched < _ENOUGH_PITCHED:
            pairs = np.concatenate([frames[:-1], frames[1:]], axis=1)[levels[:-1] > _SILENT_DB]
            self._num_checked += len(pairs)
            self._num_pitched += int((_pitch(pairs) > _PITCH).sum())

    def is_noise(self) -> bool:
        """Return whether there is sound, and none of it is a voice. Too little sound is taken for a voice."""
        levels = np.concatenate([np.zeros(0), *self._levels])
        levels = levels[levels > _SILENT_DB]
        if len(levels) < _MIN_FRAMES or self._num_checked == 0:
            return False
        low, high = np.percentile(levels, (10, 90))
        most = _MAX_PITCHED + _MAX_PITCHED_SHARE * self._num_checked
        if (
            high - low < _HUM_SPREAD_DB
            and self._num_pitched > _HUM_PITCHED_SHARE * self._num_checked
        ):
            return True
        return bool(high - low < _MAX_SPREAD_DB and self._num_pitched <= most)


def _pitch(frames: Samples) -> NDArray[np.float64]:
    """Return the strongest autocorrelation of each row at the period of a voice, as a share of its power."""
    if not len(frames):
        return np.zeros(0)
    size = 2 * frames.shape[1]
    spectrum = np.abs(np.fft.rfft(frames, size, axis=1)) ** 2
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum[:, (hertz < _BAND_HZ[0]) | (hertz > _BAND_HZ[1])] = 0
    correlation = np.fft.irfft(spectrum, axis=1)
    power = correlation[:, :1] + np.finfo(np.float32).tiny
    strongest: NDArray[np.float64] = (correlation[:, _LAGS[0] : _LAGS[1]] / power).max(axis=1)
    return strongest
