"""`lipcast plan`: flags to a question, answers to tables and JSON, a page that stays true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from lipcast.cli.plan import plan, plan_request
from lipcast.config.units import GIB
from lipcast.errors import CheckpointError, MemoryBudgetError, UsageError
from lipcast.lab.driver import DriverCard, listed_cards, parsed_card
from programs import load_program

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> None:
    plan.main(list(arguments), standalone_mode=False)


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    run(*arguments, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_table_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    run("--gpu", "rtx4060ti", "--ram", "32GB")
    text = capsys.readouterr().out
    for words in (
        "GeForce RTX 4060 Ti 16GB (rates: data sheet × efficiency)",
        "384 x 704 pixels, 1056 tokens per latent frame, window 12 latent frames",
        "4 steps, the last one folded",
        "weights of layers",
        "KV rings",
        "decoder state",
        "bottleneck: compute",
        "Other choices under the same budget",
        "If memory runs out all the same",
    ):
        assert words in text, words
    assert max(map(len, text.splitlines())) <= 120


def test_the_document_keeps_to_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--gpu", "rtx4090", "--vram", "12GB", "--ram", "48GB")
    plan = found["plan"]
    assert plan["budget"] == {"vram_bytes": 12 * 10**9, "ram_bytes": 48 * 10**9}
    assert plan["vram"]["peak_bytes"] <= 12 * 10**9 and plan["ram"]["bytes"] <= 48 * 10**9
    assert len(plan["layers"]) == 40 and "pinned" in plan["layers"]
    assert {"name", "vram_bytes", "block_s"} <= set(found["alternatives"][0])
    assert found["ladder"][0]["vram_bytes_after"] < found["ladder"][0]["vram_bytes_before"]


def test_the_encoder_of_a_pose_video_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Its file need not be there: the plan is of the sizes."""
    flags = ("--gpu", "rtx4090", "--ram", "64GB")
    plain, posed = document(capsys, *flags), document(capsys, *flags, "--pose_video", "pose.mp4")
    assert "pose encoder state" not in str(plain) and "pose encoder state" in str(posed)


def test_public_flags_are_wishes(capsys: pytest.CaptureFixture[str]) -> None:
    streamed = ("--offload_model", "True", "--offload_kv_cache", "--enable-online-decode")
    plan = document(capsys, "--gpu", "h100", "--ram", "128GB", *streamed)["plan"]
    assert set(plan["layers"]) == set(plan["ring_layers"]) == {"pinned"}
    assert plan["sink"] == "pinned"
    kept = document(capsys, "--gpu", "h100", "--ram", "128GB", "--offload_model", "False")["plan"]
    assert set(kept["layers"]) == {"resident"}


def test_the_video_follows_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--size", "688*368", "--infer-frames", "32", "--sample_steps", "3")
    video = document(capsys, "--gpu", "h100", *flags)["plan"]["video"]
    assert (video["height"], video["width"]) == (640, 384)
    assert video["window_latent_frames"] == 8 and video["evaluations_per_block"] == 2
    whole = document(capsys, "--gpu", "h100", *flags, "--no_fold_last_step")["plan"]["video"]
    assert whole["evaluations_per_block"] == 3


def test_the_embedded_model_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    plan = document(capsys, "--gpu", "rtx3060", "--model", "tiny", "--ram", "4GB")["plan"]
    assert set(plan["layers"]) == {"resident"} and len(plan["layers"]) == 6


def test_the_ladder_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    order = "infer_frames=32, size=384*256, offload"
    ladder = document(capsys, "--gpu", "rtx4090", "--fallback", order)["ladder"]
    assert [fallback["fallback"] for fallback in ladder] == [
        "infer_frames=32",
        "size=384*256",
        "offload",
    ]
    degrading = document(capsys, "--gpu", "rtx4090", "--allow_degrade")["ladder"]
    assert not all(fallback["keeps_the_picture"] for fallback in degrading)


def test_several_gpus_show_a_timeline(capsys: pytest.CaptureFixture[str]) -> None:
    run("--gpu", "rtx4090", "--gpus", "4", "--ram", "256GB")
    text = capsys.readouterr().out
    assert "4 x GeForce RTX 4090 24GB: 3 stages, VAE rank" in text
    assert "stage 2  |" in text and "decoder  |" in text and "Layouts" in text
    wished = ("--num_gpus_dit", "4", "--ulysses_size", "2", "--dit_fsdp")
    found = document(capsys, "--gpu", "rtx4090", "--gpus", "4", "--ram", "256GB", *wished)
    assert {entry["layout"] for entry in found["layouts"]} == {
        "2 stages, Ulysses 2, sharded weights, last stage decodes"
    }


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("--gpu", "rtx9999"), UsageError, "expected one of"),
        (("--gpu", "h100", "--vram", "much"), UsageError, "vram: expected a size"),
        (
            ("--gpu", "h100", "--precision", "fp7"),
            click.UsageError,
            "'--precision': 'fp7' is not one of",
        ),
        (
            ("--gpu", "h100", "--schedule", "random"),
            click.UsageError,
            "'--schedule': 'random' is not",
        ),
        (("--gpu", "h100", "--infer_frames", "30"), UsageError, "multiple of 4"),
        (("--gpu", "h100", "--gpus", "0"), UsageError, "at least 1"),
        (("--gpu", "h100", "--gpus", "1", "--num_gpus_dit", "3"), UsageError, "possible near it"),
        (("--gpu", "h100", "--gpus", "4", "--num_gpus_dit", "9"), UsageError, "possible near it"),
        (("--gpu", "h100", "--fallback", "magic"), UsageError, "fallback: expected"),
        (("--gpu", "h100", "--model", "nowhere"), CheckpointError, "which is none of them"),
        (("--gpu", "h100", "--vram", "1GB"), MemoryBudgetError, "expected at least"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        run(*arguments)
    assert words in getattr(caught.value, "format_message", lambda: str(caught.value))()


def listing(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    cards = tuple(parsed_card(line) for line in lines)
    monkeypatch.setattr("lipcast.cli.plan.listed_cards", lambda: cards)


def test_without_a_gpu_one_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    listing(monkeypatch)
    with pytest.raises(UsageError, match=r"no GPU found.*--gpu.*--vram"):
        plan_request({})


@pytest.mark.parametrize("lines", [(), ("Orin (nvgpu), [N/A], 540.4, 8.7",)])
def test_a_budget_stands_for_a_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: tuple[str, ...]
) -> None:
    listing(monkeypatch, *lines)
    monkeypatch.setattr("lipcast.cli.plan._free_ram_bytes", lambda: 48 * GIB)
    found = document(capsys, "--vram", "12GiB")["plan"]
    assert found["budget"]["vram_bytes"] == 12 * GIB >= found["vram"]["peak_bytes"]
    assert found["hardware"] == "generic"
    assert found["rates"] == "assumed, those of GeForce RTX 3060 12GB"
    run("--vram", "12GiB")
    assert "(rates: assumed, those of GeForce RTX 3060 12GB)" in capsys.readouterr().out


def test_a_card_without_memory_of_its_own_needs_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    listing(monkeypatch, "Orin (nvgpu), [N/A], 540.4, 8.7")
    with pytest.raises(UsageError, match=r"does not say how much memory it has; .*--vram"):
        plan_request({})


def test_the_machine_is_asked_where_no_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    listing(monkeypatch, "NVIDIA GeForce RTX 3090, 24576, 570.86, 8.6", "other, 1, 570.86, 8.6")
    monkeypatch.setattr("lipcast.cli.plan._free_ram_bytes", lambda: 48 * GIB)
    request = plan_request({})
    assert request.hardware.name == "rtx3090" and request.budget.ram_bytes == 48 * GIB
    assert request.budget.vram_bytes == 24576 * 2**20


def test_a_driver_that_does_not_know_capabilities_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def answer(query: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(query[1])
        is_known = "compute_cap" not in query[1]
        return subprocess.CompletedProcess(query, not is_known, "Tesla T4, 15360, 440.1" * is_known)

    monkeypatch.setattr("lipcast.lab.driver.shutil.which", lambda _: "nvidia-smi")
    monkeypatch.setattr("lipcast.lab.driver.subprocess.run", answer)
    assert listed_cards() == (DriverCard("Tesla T4", 15 * GIB, "440.1", None),)
    assert len(asked) == 2


def test_a_card_before_ampere_computes_in_fp32(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "--gpu", "t4", "--ram", "128GB")["plan"]["precision"] == "fp32"
    with pytest.raises(UsageError, match="T4 16GB has no bf16, which fp8 needs; use fp32"):
        run("--gpu", "t4", "--ram", "128GB", "--fp8")


@pytest.mark.parametrize("flag", ["--vram", "--ram"])
def test_a_forgotten_unit_is_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=f"{flag[2:]}: 12 bytes; did you mean 12GB"):
        run("--gpu", "rtx4090", flag, "12")


def test_planning_starts_without_torch() -> None:
    code = (
        "import sys; from lipcast.cli.main import main; "
        "assert main(['plan', '--gpu', 'h100', '--json']) == 0; "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("name", ["plan_docs", "gpu_docs"])
def test_the_page_is_what_the_planner_says(name: str) -> None:
    writer = load_program(ROOT / "scripts" / f"{name}.py")
    assert writer.TARGET.read_text("utf-8") == writer.document(), (
        f"{writer.TARGET.name} is out of date; run scripts/{name}.py"
    )
