"""Drawn faces that speak: the smallest source of clips with a known mouth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipcast_train.data.clips import Clip, MouthTrack, Voice


@dataclass(frozen=True)
class DrawnFaces:
    """An ellipse for a head, two dots for eyes, and a mouth that opens as the voice is loud."""

    count: int = 8
    num_frames: int = 24
    side: int = 64
    first: int = 0

    def __len__(self) -> int:
        return self.count

    def voice(self, index: int) -> Voice:
        clip = self.clip(index)
        assert clip.mouth is not None
        return clip.wave_N, clip.mouth

    def clip(self, index: int) -> Clip:
        assert 0 <= index < self.count
        rng = np.random.default_rng(1000 + self.first + index)
        skin, back, lips = rng.uniform(130, 230, 3), rng.uniform(20, 200, 3), (90.0, 20.0, 25.0)
        opening = _opening(rng, self.num_frames)
        wave = _voice(rng, opening)
        frames = np.stack([self._draw(o, skin, back, lips) for o in opening])
        still = self._draw(0.0, skin, back, lips)
        nothing = np.zeros_like(opening)
        mouth = MouthTrack(opening, nothing, nothing, nothing, nothing)
        s = self.side / 64
        boxes = {"mouth": (20, 38, 24, 16), "eyes": (16, 20, 32, 10)}
        scaled = {k: tuple(int(v * s) for v in box) for k, box in boxes.items()}
        return Clip(frames, wave, "a person is talking, calm", still, mouth, scaled)

    def _draw(self, opening: float, skin, back, lips) -> np.ndarray:
        y, x = (np.mgrid[: self.side, : self.side] + 0.5) * 64 / self.side
        picture = np.broadcast_to(np.asarray(back), (self.side, self.side, 3)).copy()
        _paint(picture, x, y, (32, 33, 20, 26), skin)
        for eye in (24, 40):
            _paint(picture, x, y, (eye, 25, 3, 2.5), (30, 30, 40))
        _paint(picture, x, y, (32, 46, 8, 1.0 + 6 * opening), lips)
        return picture.round().astype(np.uint8)


def _paint(picture: np.ndarray, x: np.ndarray, y: np.ndarray, ellipse, colour) -> None:
    cx, cy, rx, ry = ellipse
    distance = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    cover = np.clip((1 - distance) * min(rx, ry) + 0.5, 0, 1)[..., None]
    picture += cover * (np.asarray(colour, float) - picture)


def _opening(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Syllables at about four a second, and pauses."""
    time = np.arange(num_frames) / 25
    rate, phase = rng.uniform(2.5, 4.5), rng.uniform(0, 6.28)
    speech = np.clip(0.5 + 0.6 * np.sin(6.28 * rate * time + phase), 0, 1)
    pause = np.sin(6.28 * rng.uniform(0.4, 0.8) * time + rng.uniform(0, 6.28)) > -0.5
    return (speech * pause).astype(np.float32)


def _voice(rng: np.random.Generator, opening: np.ndarray) -> np.ndarray:
    num = len(opening) * 640
    time = np.arange(num) / 16000
    envelope = np.interp(np.arange(num) / 640 - 0.5, np.arange(len(opening)), opening)
    pitch = rng.uniform(90, 240)
    tone = sum(np.sin(6.28 * pitch * k * time) / k for k in range(1, 12))
    return (0.2 * envelope * tone + 0.002 * rng.standard_normal(num)).astype(np.float32)
