"""Clips whose truth is known: a drawn face whose mouth opens as told."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

SIDE, FPS, RATE = 128, 25, 16_000
SKINS = {"light": (240, 205, 185), "dark": (95, 55, 40)}


def syllable_opening(num_frames: int, seed: int = 0) -> np.ndarray:
    """0..1 for each frame: openings of irregular lengths and heights, with pauses."""
    rng = np.random.default_rng(seed)
    curve = np.convolve(rng.random(num_frames + 8) ** 2, np.hanning(5) / 2, mode="same")
    return np.clip(curve[4:-4], 0, 1)


def drawn_face(opening: float, *, skin: str = "light", shift: float = 0.0) -> np.ndarray:
    """[SIDE, SIDE, 3]: an oval face with eyes and a mouth, its dark inside `opening` high.

    `shift` moves the head right, in pixels.
    """
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    columns = columns - shift
    frame = np.empty((SIDE, SIDE, 3), np.float32)
    frame[:] = (150, 180, 200)

    def ellipse(x: float, y: float, width: float, height: float) -> np.ndarray:
        return ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 < 1

    frame[ellipse(64, 60, 38, 50)] = SKINS[skin]
    for x in (50, 78):
        frame[ellipse(x, 48, 6, 4)] = (250, 250, 250)
        frame[ellipse(x, 48, 2.5, 2.5)] = (30, 40, 90)
    frame[ellipse(64, 85, 14, 1.5 + 9 * opening)] = (170, 60, 70)
    frame[ellipse(64, 85, 12, 0.3 + 8 * opening)] = (76, 18, 23)
    return frame.astype(np.uint8)


def drawn_clip(
    opening: np.ndarray, *, skin: str = "light", seed: int = 1, sway: np.ndarray | None = None
) -> list[np.ndarray]:
    """Frames of a face that also sways (pixels to the right), blinks not, and has a little noise."""
    rng = np.random.default_rng(seed)
    if sway is None:
        sway = 1.5 * np.sin(np.arange(len(opening)) / 9)
    clip = []
    for height, shift in zip(opening, sway, strict=True):
        noise = rng.normal(0, 1.5, (SIDE, SIDE, 3))
        face = drawn_face(float(height), skin=skin, shift=float(shift))
        clip.append(np.clip(face + noise, 0, 255).astype(np.uint8))
    return clip


def write_voice(path: Path, opening: np.ndarray, *, delay_frames: int = 0) -> Path:
    """A hum as loud as the mouth is open, `delay_frames` later; 16 kHz mono."""
    loud = np.interp(
        np.arange(len(opening) * RATE // FPS) * FPS / RATE - 0.5 - delay_frames,
        np.arange(len(opening)),
        opening,
        left=0,
    )
    hum = np.sin(2 * np.pi * 170 * np.arange(len(loud)) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((0.4 * loud * hum * 32767).astype("<i2").tobytes())
    return path
