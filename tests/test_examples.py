"""The programs in examples/ run as a reader would run them, on small inputs."""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import lipcast

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name: str) -> Any:
    """Return a program of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    load_example(name).main([*ARGUMENTS[name](voice), "--size", "64*64", "--output", str(output)])
    assert num_frames(output) == 23
    assert "frames" in capsys.readouterr().out


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_example_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example(name)
    with pytest.raises(SystemExit, match="0"):
        example.main(["--help"])
    assert example.__doc__.splitlines()[0].split(":")[0] in " ".join(
        capsys.readouterr().out.split()
    )
