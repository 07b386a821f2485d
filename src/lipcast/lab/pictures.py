"""Arithmetic on pictures: grey, thumbnails, PSNR and SSIM, in numpy.

Frames are uint8 RGB [H, W, 3]; grey pictures are float32 [h, w] in 0..255.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Floats = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SSIM_WINDOW = 7
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def grey(frame: Frame) -> Floats:
    """Luma (BT.601 weights)."""
    luma: Floats = frame.astype(np.float32) @ _LUMA
    return luma


def thumbnail(frame: Frame, short_side: int) -> Floats:
    """Grey, averaged over whole squares of pixels until the short side is about `short_side`."""
    picture = grey(frame)
    factor = max(1, min(picture.shape) // short_side)
    height, width = (side // factor * factor for side in picture.shape)
    squares = picture[:height, :width].reshape(height // factor, factor, width // factor, factor)
    small: Floats = squares.mean(axis=(1, 3), dtype=np.float32)
    return small


def psnr(a: Frame, b: Frame) -> float:
    """Peak signal to noise, dB, of 8-bit pictures; infinite where they are equal."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def ssim(a: Floats, b: Floats) -> float:
    """Structural similarity of two grey pictures, -1..1, 1 for equal ones.

    Mean over all 7x7 windows, K1 0.01, K2 0.03, unbiased variances: Wang et al. 2004, as scikit-image
    computes it by default.
    """
    unbiased = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)
    mean_a, mean_b = _box_mean(a), _box_mean(b)
    var_a = unbiased * (_box_mean(a * a) - mean_a**2)
    var_b = unbiased * (_box_mean(b * b) - mean_b**2)
    both = unbiased * (_box_mean(a * b) - mean_a * mean_b)
    top = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)
    bottom = (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
    return float((top / bottom).mean())


def _box_mean(picture: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over every whole window, by a table of sums."""
    size = _SSIM_WINDOW
    sums = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1))
    sums[1:, 1:] = picture.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
    whole = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return np.asarray(whole / size**2)
