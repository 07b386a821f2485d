"""Every precision of the weights makes nearly the same video, however it got there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lipcast
from lipcast.cli.main import main
from sounds import EXAMPLES, write_wav

SMALL: dict[str, Any] = {"infer_frames": 12, "size": "128*128"}
LEAST_DB = {"int8": 45.0, "fp8": 35.0, "int4": 25.0}
"""What is promised; measured over whole clips: 55, 43, 36 dB."""


def frames_of(model: lipcast.Lipcast, voice: Path) -> NDArray[np.uint8]:
    return model.generate(
        image=EXAMPLES / "portrait_0.png", audio=voice, prompt="calm", **SMALL
    ).frames


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """In dB; 0 difference counts as 1e-9."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(1e-9, error)))


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("voice") / "voice.wav", 0.4)


@pytest.fixture(scope="module")
def exact(tiny: lipcast.Lipcast, voice: Path) -> NDArray[np.uint8]:
    """The frames in float32."""
    return frames_of(tiny, voice)


@pytest.mark.slow
@pytest.mark.parametrize("precision", LEAST_DB)
def test_quantised_weights_make_nearly_the_same_video(
    precision: str, exact: NDArray[np.uint8], voice: Path, tmp_path: Path
) -> None:
    streamed = lipcast.load("tiny", device="cpu", precision=precision)
    assert streamed.bundle.precision == precision
    close = frames_of(streamed, voice)
    assert LEAST_DB[precision] < psnr(close, exact) < 100
    assert main(["convert", "--precision", precision, "-o", str(tmp_path / "out"), "-q"]) == 0
    converted = lipcast.load(tmp_path / "out", device="cpu")
    assert converted.bundle.precision == precision
    assert np.array_equal(frames_of(converted, voice), close)
