"""A model has one set of names, whichever command is given one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_hub import NAME, FakeHub
from lipcast.cli.main import main
from lipcast.config.models import Models
from lipcast.weights.checkpoint import MODEL_ALIASES, checkpoint_dir, model_name
from lipcast.weights.configs import read_configs

NAMES = (NAME, "14B", *MODEL_ALIASES)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIPCAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("lipcast.weights.hub._library", lambda **_: FakeHub())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_not_here_is_known_by_all_its_names(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_name(name) == NAME and read_configs(name) == Models()
    for command in ("info", "plan --gpu h100"):
        assert main([*command.split(), "--model", name]) == 0
    assert main(["doctor", "--model", name]) == 1
    assert f"run `lipcast pull {NAME}`" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_pulled_and_found_by_all_its_names(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == NAME
    assert {checkpoint_dir(other) for other in NAMES} == {tmp_path / "home" / "models" / NAME}


def test_a_folder_comes_before_a_name(tmp_path: Path) -> None:
    (tmp_path / "14b").mkdir()
    assert checkpoint_dir("14b") == Path("14b")
