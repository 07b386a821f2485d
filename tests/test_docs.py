"""What the documentation says is run: every command, every piece of Python, every link."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import wave
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image

import lipcast
import lipcast.api
from drawn import SIDE, drawn_clip, syllable_opening
from fake_hub import FakeHub
from lipcast import errors
from lipcast.cli.app import make_app
from lipcast.cli.main import main
from lipcast.media.video import VideoWriter
from lipcast.weights.prompts import PromptEmbedding, write_embedding
from programs import load_program

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{name}.md" for name in (
    "generate", "directing", "several-characters", "checkpoints", "python-api", "architecture",
    "troubleshooting", "lab", "long-videos", "cluster",
    "low-memory",
    "many-gpus",
)))  # fmt: skip
SET_UP = {"./scripts/demo", "./scripts/test"}
_OTHER_MODEL = ("precision", "loras", "vram", "kv_precision", "gpus")
OTHER_FLAGS = {
    "--help", "--index-url", "--version", "--debug", "--head", "--port", "--nproc_per_node",
    "--no-python", "--kill", "--seams", "--anchor", "--swap_anchor",
}  # fmt: skip


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and number, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for number, match in enumerate(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)):
            assert match[1] in {"bash", "python", "text"}, f"{page}: a block of {match[1]!r}"
            if match[1] == language:
                found.append((f"{page}:{number}", match[2]))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """(place, words) of every command in the pages."""
    found = []
    for place, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                found.append((place, words))
    return found


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: lipcast.Lipcast, videos: Path
) -> Iterator[Path]:
    """What the pages suppose to be there, with sounds of one block; the model is loaded once."""
    load = lipcast.api.load

    def load_once(name: str | Path = "tiny", **how: Any) -> lipcast.Lipcast:
        changed = any(how.get(key) for key in _OTHER_MODEL)
        is_plain = name == "tiny" and not changed
        return quick if is_plain else load(name, **how)

    monkeypatch.setattr("lipcast.api.load", load_once)
    supply_models(tmp_path, monkeypatch)
    (tmp_path / "examples").mkdir()
    for path in (ROOT / "examples").glob("*.png"):
        shutil.copy(path, tmp_path / "examples")
    for path in (ROOT / "examples").glob("*.wav"):
        write_wav(tmp_path / "examples" / path.name)
    shutil.copy(ROOT / "examples" / "portrait_0.png", tmp_path / "me.png")
    write_wav(tmp_path / "hello.wav")
    for name in ("anna", "ben"):
        write_wav(tmp_path / f"{name}.wav")
    Image.new("RGB", (256, 128), "pink").save(tmp_path / "two.png")
    shutil.copytree(videos, tmp_path, dirs_exist_ok=True)
    (tmp_path / "prompts.csv").write_text("second,prompt\n1,he laughs\n")
    # One cell, which is refused before a process is started.
    (tmp_path / "matrix.toml").write_text("[axes]\nenable_online_decode = [false]\n")
    here = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(here)


def supply_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub without a network, a place for its models, and a prompt's embedding."""
    monkeypatch.setattr("lipcast.weights.hub._library", lambda **_: FakeHub())
    for module in ("hub", "checkpoint"):
        monkeypatch.setattr(f"lipcast.weights.{module}.models_dir", lambda: folder / "models")
    (folder / "models").mkdir()
    embedding = PromptEmbedding(torch.zeros(3, 64), "", "")
    write_embedding(folder / "prompt.safetensors", embedding)


def write_wav(path: Path) -> None:
    """0.4 s of a hum: one block."""
    samples = 8000 * np.sin(2 * np.pi * 150 * np.arange(6400) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype(np.int16).tobytes())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of a second."""
    folder = tmp_path_factory.mktemp("videos")
    for name, seed in (("out.mp4", 0), ("other.mp4", 1), ("pose.mp4", 2), ("shot.mp4", 3)):
        frames = np.stack(drawn_clip(syllable_opening(26, seed)))
        with VideoWriter(
            folder / name, width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1
        ) as writer:
            writer.write(frames, np.zeros((26 * 640, 1), np.float32))
    return folder


def is_slow(place: str, words: list[str]) -> bool:
    """Return whether a command makes or measures a video; the quick tests make those of the README."""
    return ("generate" in words and not place.startswith("README")) or {
        "evaluate", "--character"
    } <= set(words)  # fmt: skip


@pytest.mark.parametrize(
    ("place", "words"),
    [
        pytest.param(
            place,
            words,
            id=" ".join(words)[:60],
            marks=pytest.mark.slow if is_slow(place, words) else (),
        )
        for place, words in commands()
    ],
)
def test_commands_run(
    place: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] in SET_UP:
        assert os.access(ROOT / words[0], os.X_OK)
        return
    assert words[0].removeprefix(".venv/bin/") == "lipcast", place
    exit_code = main(words[1:])
    said = capsys.readouterr().err
    if any(word.startswith("ckpt/") for word in words):
        # Every flag was accepted, and then the checkpoint is not there.
        assert (exit_code, "ckpt/Wan2.2-S2V-14B" in said) == (4, True), said
        return
    assert exit_code == 0, said
    if "-o" in words or "--save_file" in words:
        assert (folder / words[-1]).exists() or (folder / words[words.index("-o") + 1]).exists()


@pytest.mark.parametrize(
    ("place", "text"), blocks("python"), ids=[place for place, _ in blocks("python")]
)
def test_python_runs(place: str, text: str, folder: Path) -> None:
    exec(compile(text, place, "exec"), {"__name__": "__main__"})
    if "talk.mp4" in text:
        assert (folder / "talk.mp4").exists()


def test_the_main_use_is_shown() -> None:
    assert len(blocks("python")) >= 5
    shown = {words[1] for _, words in commands() if words[0].endswith("lipcast")}
    assert {"generate", "info", "plan", "pull", "models", "convert", "doctor"} <= shown
    assert {words[0] for _, words in commands()} >= SET_UP


OTHER_PAGES = (
    "docs/plan.md",
    "docs/low-vram-study.md",
    "docs/api-reference.md",
    "docs/lora-training.md",
    "docs/training.md",
    "docs/decisions/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md",
    "SECURITY.md",
)


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        assert "://" in target or (path.parent / target).exists(), f"{page}: {target}"


def test_mentioned_flags_exist() -> None:
    known = set(OTHER_FLAGS)
    app = make_app()
    jobs = app.commands["job"]
    assert isinstance(jobs, click.Group)
    for command in (app, *app.commands.values(), *jobs.commands.values()):
        for parameter in command.params:
            known.update((*parameter.opts, *parameter.secondary_opts))
    for page in PAGES:
        mentioned = set(
            re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", (ROOT / page).read_text("utf-8"))
        )
        assert mentioned <= known, f"{page}: {sorted(mentioned - known)}"


def test_every_verb_is_mentioned() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in make_app().commands:
        assert f"lipcast {name}" in readme, name


def test_study_page_is_that_of_its_figures() -> None:
    script = load_program(ROOT / "scripts/low_vram_study.py")
    written = script.page(script.read_results([script.FIGURES]))
    assert script.PAGE.read_text("utf-8") == written, "run scripts/low_vram_study.py --write"


def test_results_page_is_that_of_its_figures_and_of_the_plan() -> None:
    script = load_program(ROOT / "scripts/gpu_results.py")
    found = script.page(script.measured())
    assert script.PAGE.read_text("utf-8") == found, "run scripts/gpu_results.py"
    assert "Nothing of this version has been measured" in script.page([])


def test_results_of_a_check_appear_with_the_name_of_their_card() -> None:
    script = load_program(ROOT / "scripts/gpu_results.py")
    claims = [{"text": "a", "holds": holds, "found": ""} for holds in (True, False, None)]
    part = {"figures": {"tick ms": 155.5, "by": {"triton": 1}}, "claims": claims, "seconds": 1.0}
    one = script.record({"command": "fast", "device": "NVIDIA H100", "parts": {"fp8": part}})
    page = script.page([one])
    assert "### NVIDIA H100, `fast`\n\n1 claims hold. Refuted: a.\n" in page
    assert "| fp8: tick ms | 155.5 |\n| fp8: by | triton 1 |\n" in page
    assert "Nothing of this version" not in page


def test_flag_tables_are_those_of_the_parser() -> None:
    script = load_program(ROOT / "scripts/flag_docs.py")
    page = script.PAGE.read_text("utf-8")
    assert page == script.with_tables(page), "run scripts/flag_docs.py"


def test_every_error_and_its_code_is_explained() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.LipcastError):
            assert f"| {error.exit_code} | `{error.__name__}` |" in page


def test_the_way_of_a_request_is_twelve_functions_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    hops = re.findall(r"^\| (\d+) \| `([\w.]+):([\w.]+)` \|", text, re.M)
    assert [int(number) for number, _, _ in hops] == list(range(1, 13))
    assert all(callable(attrgetter(name)(import_module(module))) for _, module, name in hops)
