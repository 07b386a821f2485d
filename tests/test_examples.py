"""The programs in examples/ run as a reader would run them, on small inputs."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest

import lipcast
from programs import load_program

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """0.9 s of a hum at 16 kHz: two blocks."""
    path = tmp_path / "voice.wav"
    samples = 8000 * np.sin(2 * np.pi * 150 * np.arange(14_400) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype(np.int16).tobytes())
    return path


def num_frames(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


ARGUMENTS = {
    "generate": lambda voice: [str(EXAMPLES / "portrait_0.png"), str(voice)],
    "stream_to_file": lambda voice: [str(EXAMPLES / "portrait_1.png"), str(voice)],
    "live": lambda voice: [str(EXAMPLES / "portrait_2.png"), "--audio", str(voice)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_example_makes_a_video_of_the_sound(
    name: str,
    voice: Path,
    tmp_path: Path,
    tiny: lipcast.Lipcast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lipcast, "load", {"tiny": tiny}.__getitem__, raising=False)
    output = tmp_path / "out.mp4"
    load_program(EXAMPLES / f"{name}.py").main(
        [*ARGUMENTS[name](voice), "--size", "64*64", "--output", str(output)]
    )
    assert num_frames(output) == 23
    assert "frames" in capsys.readouterr().out


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_example_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_program(EXAMPLES / f"{name}.py")
    with pytest.raises(SystemExit, match="0"):
        example.main(["--help"])
    assert example.__doc__.splitlines()[0].split(":")[0] in " ".join(
        capsys.readouterr().out.split()
    )
