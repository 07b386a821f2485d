"""`lipcast info` computes every size from configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipcast.cli.info import describe
from lipcast.cli.main import main
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.models import Models
from lipcast.errors import CheckpointError
from lipcast.weights.configs import read_configs


def test_the_published_model_has_its_measured_sizes() -> None:
    """Measured on the public implementation: 16.296 B parameters, 38.67 GiB of KV at 704x384."""
    options = GenerateOptions(size="704*384", infer_frames=48, fold_last_step=False)
    told = describe("14b", Models(), options)
    assert told["networks"]["transformer"] == 16_295_755_609
    assert told["video"]["tokens_per_block"] == 3168
    assert told["bytes"]["bf16"]["KV rings of all steps"] / 2**30 == pytest.approx(38.67, abs=0.005)
    assert 2 * told["bytes"]["bf16"]["sink"] == told["bytes"]["fp32"]["sink"]


def test_sizes_follow_the_flags() -> None:
    tiny = read_configs("tiny")
    whole = describe("tiny", tiny, GenerateOptions(fold_last_step=False))
    folded = describe("tiny", tiny, GenerateOptions())
    short = describe("tiny", tiny, GenerateOptions(infer_frames=24))
    assert (whole["video"]["steps"], folded["video"]["steps"]) == (4, 3)
    ring = folded["bytes"]["fp32"]["KV ring of one step"]
    assert whole["bytes"]["fp32"]["KV rings of all steps"] == 4 * ring
    assert 2 * short["bytes"]["fp32"]["KV ring of one step"] == ring
    assert (whole["video"]["height"], whole["video"]["width"]) == (256, 256)


def test_the_sum_counts_nothing_twice() -> None:
    parts = dict(describe("tiny", read_configs("tiny"), GenerateOptions())["bytes"]["fp32"])
    total = parts.pop("sum")
    not_at_once = parts["KV ring of one step"] + parts["working memory, transformer"]
    assert parts["working memory, decoder"] > parts["working memory, transformer"]
    assert total == sum(parts.values()) - not_at_once


def test_table_and_document_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for name, count in told["networks"].items():
        assert f"{name:<28}{count:>16,}" in shown
    for part in told["bytes"]["fp32"]:
        assert part in shown


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (None, "", "found no config.json"),
        ("config.json", "{", "expected a JSON file"),
        ("config.json", "[]", "expected a JSON object, got list"),
        ("config.json", '{"model_type": "t2v"}', "not a Live Avatar"),
    ],
)
def test_folders_that_hold_no_model(
    tmp_path: Path, name: str | None, content: str, sentence: str
) -> None:
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=sentence):
        read_configs(str(tmp_path))
