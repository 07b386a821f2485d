"""The verbs about model files: pull, models, convert, encode-prompt, doctor."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import lipcast
from fake_hub import NAME, WAN, FakeHub
from lipcast.cli.main import main
from lipcast.errors import UsageError
from lipcast.lab.driver import DriverCard
from lipcast.planning.hardware import gpu
from lipcast.planning.plan import Budget
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.manifest import read_manifest
from lipcast.weights.prompts import read_embedding

TINY = Path(lipcast.__file__).parent / "assets" / "tiny"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place to work in, without a network, without a GPU, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIPCAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("lipcast.weights.hub._library", lambda **_: FakeHub())
    monkeypatch.setattr("lipcast.weights.disk.os.fsync", lambda _: None)
    for verb in ("models", "doctor"):
        monkeypatch.setattr(f"lipcast.cli.{verb}.listed_cards", tuple)
    return tmp_path


def told(capsys: Capture, *arguments: str, exit_code: int = 0) -> Any:
    """The JSON document of a command."""
    assert main([*arguments, "--json"]) == exit_code
    return json.loads(capsys.readouterr().out)


# pull


def test_pull_says_where_and_which_version(folder: Path, capsys: Capture) -> None:
    document = told(capsys, "pull", NAME)
    assert document["status"] == "complete"
    assert document["directory"] == str(folder / "home" / "models" / NAME)
    assert set(document["revisions"].values()) == {"c0ffee"}
    assert document["bytes"] > 5000
    assert main(["pull", NAME, "--dest", "here", "--revision", f"{WAN}@v2"]) == 0
    said = capsys.readouterr()
    assert (said.out, "is complete" in said.err) == ("here\n", True)
    assert told(capsys, "pull", NAME, "--dest", "here")["revisions"][WAN] == "v2"


def test_pull_offline_lists_what_is_missing(folder: Path, capsys: Capture) -> None:
    assert main(["pull", NAME, "--dest", "here", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    (folder / "here" / "Wan2.1_VAE.pth").unlink()
    error = told(capsys, "pull", NAME, "--dest", "here", "--offline", exit_code=4)["error"]
    assert "Wan2.1_VAE.pth" in error["message"]
    assert f"Run `lipcast pull {NAME}`" in error["message"]


def test_the_environment_can_say_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["pull", NAME, "--dest", str(tmp_path / "here"), "--quiet"]) == 4
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pull"], "Missing argument 'NAME'"),
        (["pull", "sora"], "expected one of live-avatar-14b, got 'sora'"),
        (["pull", NAME, "--revision", "main"], '--revision: expected "owner/name@commit", got'),
        (["convert"], "Missing option '--precision'"),
        (["convert", "--precision", "int3"], "'--precision': 'int3' is not one of"),
        (
            ["convert", "--precision", "int8", "--text_precision", "x"],
            "'--text_precision': 'x'",
        ),
        (["convert", "--precision", "int8", "--model", "nowhere"], "got 'nowhere'"),
        (["convert", "--precision", "int8", "--lora", "no.safetensors"], "found nothing there"),
        (["convert", "--precision", "int8", "--shard_size", "big"], "expected a size"),
        (["encode-prompt"], "Missing argument 'TEXT'"),
        (["encode-prompt", "calm", "--model", "."], "incomplete"),
        (["models", "--dir", "nowhere"], "--dir: nowhere is not a folder"),
    ],
)
def test_wrong_commands_get_one_sentence(
    folder: Path, capsys: Capture, arguments: list[str], sentence: str
) -> None:
    assert main(arguments) in {2, 4}
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lipcast: ")
    assert sentence in said.err


# models


def test_models_lists_what_is_here_and_what_can_be_pulled(folder: Path, capsys: Capture) -> None:
    assert main(["convert", "--precision", "int8", "-o", "home/models/tiny-int8", "-q"]) == 0
    rows = {row["name"]: row for row in told(capsys, "models")["models"]}
    assert set(rows) == {"tiny", "tiny-int8", NAME}
    assert (rows["tiny"]["state"], rows["tiny"]["fits"]) == ("complete", True)
    assert rows["tiny-int8"]["precision"] == "int8"
    assert rows[NAME]["state"] == "not here"
    assert "GiB" in rows[NAME]["where"]
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert f"get it: lipcast pull {NAME}" in shown
    assert "complete" in shown.splitlines()[0]


def test_models_names_what_is_missing(folder: Path, capsys: Capture) -> None:
    shutil.copytree(TINY, folder / "mine" / "avatar")
    (folder / "mine" / "avatar" / "Wan2.1_VAE.safetensors").unlink()
    assert main(["models", "--dir", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "avatar" in shown
    assert "missing: Wan2.1_VAE" in shown


def test_models_verify_finds_a_changed_byte(folder: Path, capsys: Capture) -> None:
    assert main(["convert", "--precision", "int8", "-o", "home/models/tiny-int8", "-q"]) == 0
    rows = told(capsys, "models", "--verify")["models"]
    assert {row["name"]: row["verified"] for row in rows if row["precision"]} == {"tiny-int8": True}
    assert main(["pull", NAME, "-q"]) == 0
    rows = told(capsys, "models", "--verify")["models"]
    assert {row["name"]: row["verified"] for row in rows} == {
        "tiny": None, "tiny-int8": True, NAME: True,
    }  # fmt: skip
    shard = next((folder / "home" / "models" / "tiny-int8").glob("*-00001-*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["models", "--verify"]) == 4
    said = capsys.readouterr()
    assert "DAMAGED" in said.out
    assert shard.name in said.err


def test_models_asks_the_planner_where_there_is_a_gpu(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = gpu("rtx4090")
    for ram_bytes, fits in ((64 << 30, True), (1 << 30, False)):
        budget = Budget(card.memory_bytes, ram_bytes)
        monkeypatch.setattr(
            "lipcast.cli.fit_check.this_machine", lambda _, budget=budget: (card, budget)
        )
        rows = {row["name"]: row for row in told(capsys, "models")["models"]}
        assert rows[NAME]["fits"] is fits
        assert ("frames/s predicted" in rows[NAME]["where"]) is fits


# convert


def test_convert_reports_every_layer(folder: Path, capsys: Capture) -> None:
    document = told(capsys, "convert", "--precision", "int4", "--text_precision", "int8")
    assert document["output"] == str(folder / "tiny-int4")
    assert document["num_quantised_layers"] == len(document["layers"]) > 75
    assert 0.05 < document["weight_error"] < 0.1
    assert document["recipe"]["precision"] == "int4"
    manifest = read_manifest(folder / "tiny-int4")
    assert manifest is not None
    assert manifest["recipe"] == document["recipe"]
    assert find_checkpoint(folder / "tiny-int4").missing == ()
    assert main(["convert", "--precision", "int4", "--text_precision", "int8"]) == 0
    shown = capsys.readouterr().out
    assert "mean of" in shown
    assert "blocks." in shown


def test_convert_leaves_another_folder_alone(folder: Path, capsys: Capture) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "diary").touch()
    assert main(["convert", "--precision", "int8", "-o", "out"]) == 6
    assert "choose another directory" in capsys.readouterr().err


# encode-prompt


@pytest.mark.slow
def test_an_encoded_prompt_is_a_file_that_generate_takes(folder: Path, capsys: Capture) -> None:
    document = told(capsys, "encode-prompt", "a calm man", "-o", "calm.safetensors")
    embedding = read_embedding(folder / "calm.safetensors")
    assert embedding.prompt == "a calm man"
    assert list(embedding.context_TC.shape) == [document["tokens"], document["channels"]]
    assert embedding.text_encoder == document["text_encoder"] != ""
    assert main(["encode-prompt", "a calm man"]) == 0
    assert capsys.readouterr().err.startswith("lipcast: prompt.safetensors: 11 tokens of 64")
    again = (folder / "prompt.safetensors").read_bytes()
    assert again == (folder / "calm.safetensors").read_bytes()


def test_encoding_needs_the_text_encoder_only(folder: Path, capsys: Capture) -> None:
    (folder / "text").mkdir()
    for path in [*TINY.glob("models_t5_*"), TINY / "t5_config.json"]:
        shutil.copy(path, folder / "text")
    assert main(["encode-prompt", "calm", "--ckpt_dir", "text", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


# doctor


def test_doctor_finds_this_machine_fit(folder: Path, capsys: Capture) -> None:
    document = told(capsys, "doctor")
    assert document["runs"] is True
    by_topic = {finding["topic"]: finding for finding in document["findings"]}
    assert {"Python", "torch", "CUDA", "attention", "FFmpeg", "memory", "disk", "model",
            "fits"} <= set(by_topic)  # fmt: skip
    assert all(f["advice"] for f in document["findings"] if f["status"] != "ok")
    assert "libavcodec" in by_topic["FFmpeg"]["found"]
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("OK       Python")
    assert shown.endswith("lipcast generate --model tiny: would run\n")


@pytest.mark.parametrize("damage", ["missing", "truncated", "web page", "no config"])
def test_doctor_names_what_is_wrong_with_a_model(
    folder: Path, capsys: Capture, damage: str
) -> None:
    model = Path(shutil.copytree(TINY, folder / "model"))
    weights = model / "Wan2.1_VAE.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "web page":
        weights.write_text("<!doctype html>")
    else:
        weights = model / "config.json"
        weights.unlink()
    assert main(["doctor", "--model", "model"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM  model" in shown
    assert weights.name in shown
    assert shown.endswith("would not run; see PROBLEM above\n")


def test_doctor_finds_parts_under_any_name(folder: Path, capsys: Capture) -> None:
    model = Path(shutil.copytree(TINY, folder / "model"))
    (model / "Wan2.1_VAE.safetensors").rename(model / "vae.safetensors")
    assert main(["doctor", "--model", "model"]) == 0
    assert "every part is there" in capsys.readouterr().out


def test_doctor_warns_of_what_is_not_needed_at_once(folder: Path, capsys: Capture) -> None:
    model = Path(shutil.copytree(TINY, folder / "model"))
    for path in model.glob("models_t5_*"):
        path.unlink()
    (folder / "home" / "models" / NAME).mkdir(parents=True)
    (folder / "home" / "models" / NAME / "config.json").write_text("{}")
    assert main(["doctor", "--model", "model"]) == 0
    shown = capsys.readouterr().out
    assert "warning  text encoder" in shown
    assert f"`lipcast pull {NAME}` continues" in shown


def test_a_model_that_does_not_fit_would_not_run(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipcast.cli.fit_check.cpu_needs", lambda _: {"bf16": 2**60, "int4": 2**59})
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM  fits" in shown
    assert "needs about 536870912.00 GiB of memory" in shown


def test_doctor_without_torch_still_answers(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    document = told(capsys, "doctor", exit_code=1)
    problems = [f["topic"] for f in document["findings"] if f["status"] == "problem"]
    assert "torch" in problems


def test_doctor_says_when_torch_and_driver_disagree(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def cards() -> tuple[DriverCard, ...]:
        asked.append("nvidia-smi")
        return (DriverCard("NVIDIA L4", 24 << 30, "570.1", (8, 9)),)

    monkeypatch.setattr("lipcast.cli.doctor.listed_cards", cards)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    findings = {f["topic"]: f for f in told(capsys, "doctor")["findings"]}
    assert findings["CUDA"]["status"] == "warning"
    assert "570.1" in findings["CUDA"]["found"]
    assert findings["fits"]["found"].startswith("NVIDIA L4: ") and asked == ["nvidia-smi"]


def test_a_card_that_cannot_be_planned_for_is_no_reason_to_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def unknown(_: object) -> None:
        raise UsageError("no memory of its own")

    monkeypatch.setattr("lipcast.cli.fit_check.this_machine", unknown)
    assert main(["models"]) == 0
    assert "CPU" in capsys.readouterr().out
