"""`lipcast-train lora`: from videos to a file that `lipcast` merges; flags, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from faces import DrawnFaces
from test_adapters import CONFIGS, TINY

from lipcast.media.video import VideoWriter
from lipcast.weights.bundle import load_bundle
from lipcast_train.cli.lora import lora
from lipcast_train.cli.main import main
from synthetic import write_synthetic

PAGE = Path(__file__).parents[2] / "docs" / "lora-training.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a video of a second whose prompt lies beside it."""
    folder = tmp_path_factory.mktemp("lora")
    write_synthetic(folder / "model", CONFIGS, speech=TINY / "wav2vec2-tiny")
    (folder / "clips").mkdir()
    clip = DrawnFaces(count=1, num_frames=24).clip(0)
    path = folder / "clips" / "one.mp4"
    with VideoWriter(path, width=64, height=64, sample_rate=16_000, num_channels=1) as writer:
        writer.write(clip.frames_THWC, np.ascontiguousarray(clip.wave_N[:, None]))
    path.with_suffix(".txt").write_text("a drawn face speaks")
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    given = f"--data {folder}/clips --model {folder}/model --side 64 --blocks 1 --device cpu"
    return ["lora", *given.split(), "--out", str(folder / "style.safetensors"), *more]


def test_a_folder_of_videos_becomes_an_adapter(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--rank 2 --steps 2 --weights int8 --targets self_attn,ffn --json"
    assert main(arguments(folder, *words.split())) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["steps"] == 2 and document["targets"] == ["self_attn", "ffn"]
    assert document["memory"]["total"] == sum(
        size for part, size in document["memory"].items() if part != "total"
    )
    assert said.err.index("frozen weights") < said.err.index("encoding 1 clips")
    load_bundle(
        folder / "model", device=torch.device("cpu"), dtype=torch.float32, networks=("dit",),
        loras=[document["output"]],
    )  # fmt: skip


def test_a_dry_run_loads_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "--dry_run")) == 0
    assert re.search(r"1 clips of 64\*64\nfrozen weights +\d+ MiB", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        ("--vram 1MiB --dry_run", 5, "training these adapters needs"),
        ("--targets head", 2, "targets: expected some of"),
        ("--side 100", 2, "side: expected a multiple of 64, got 100"),
        ("--out style.pt", 2, "out: expected a file that ends in .safetensors"),
        ("--rank 0", 2, "expected at least 1"),
        ("--learning_rate 0", 2, "learning_rate"),
        ("--data nowhere", 3, "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: str, exit_code: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, *shlex.split(words))) == exit_code
    assert sentence in capsys.readouterr().err


def test_the_page_shows_flags_and_commands_that_exist() -> None:
    text = PAGE.read_text("utf-8")
    examples = "\n".join(lora.examples)
    shown = [shlex.split(line) for line in f"{text}\n{examples}".splitlines() if _is_command(line)]
    assert len(shown) >= 5
    for words in shown:
        assert lora.parse(words[2:])
    known = {spelling for option in lora.params for spelling in option.opts}
    rows = re.findall(r"^\| `(--[a-z_]+)", text, re.M)
    assert set(rows) <= known and {"--weights", "--rank", "--targets", "--resume"} <= set(rows)


def _is_command(line: str) -> bool:
    return line.startswith("lipcast-train lora ")
