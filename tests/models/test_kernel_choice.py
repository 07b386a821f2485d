"""Which kernels a model gets, and that a video is the same with either within the format's rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton_interpreter
from compiling import SHARED_BYTES, compiled

import lipcast
from lipcast.cli.plan import plan_request
from lipcast.config.gpu_options import AttentionChoice
from lipcast.config.models import DiTConfig
from lipcast.errors import UsageError
from lipcast.models.attention_backends import AttentionBackend
from lipcast.models.kernels import choice
from lipcast.models.kernels.choice import choose_kernels
from lipcast.models.kernels.fused import FusedKernels
from lipcast.models.kernels.operators import attention_block, row_block
from lipcast.models.kernels.register import on_its_device
from lipcast.planning import costs
from lipcast.planning.hardware import CUDNN_MAJORS, expected_kernels, gpu
from sounds import EXAMPLES

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
ODD = DiTConfig(dim=120, num_heads=5)
"""Heads of 24 channels."""


def test_a_cpu_computes_plainly_unless_told_otherwise(tiny: lipcast.Lipcast) -> None:
    assert tiny.bundle.dit.kernels.name == "plain"
    chosen = choose_kernels("auto", CPU, DiTConfig())
    assert (chosen.kernels.name, chosen.reason) == ("plain", "no GPU")
    assert choose_kernels("triton", CPU, DiTConfig()).kernels.name == "triton"  # interpreted


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_interpreter.triton.knobs.runtime, "interpret", False)
    with pytest.raises(UsageError, match="Triton needs a CUDA device; choose auto or plain"):
        lipcast.load("tiny", device="cpu", kernels="triton")
    with pytest.raises(UsageError, match="expected one of auto, plain, triton, got 'cutlass'"):
        lipcast.load("tiny", device="cpu", kernels="cutlass")  # type: ignore[arg-type]


@pytest.mark.parametrize("obstacle", ["Triton is not installed", ""])
def test_auto_takes_what_works_on_a_gpu(obstacle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "triton_obstacle", lambda _: obstacle)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    chosen = choose_kernels("auto", GPU, DiTConfig())
    assert chosen.kernels.name == ("plain" if obstacle else "triton")
    assert chosen.reason == (obstacle or "Triton compiles for this GPU")
    assert choose_kernels("plain", GPU, DiTConfig()).kernels.name == "plain"
    odd = choose_kernels("auto", GPU, ODD)
    assert odd.kernels.name == "plain" and "heads of size 24" in odd.reason


def test_a_compiler_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("gcc: command not found\nand more")

    monkeypatch.setattr("lipcast.models.kernels.operators.rms_norm", fail)
    assert choice.triton_obstacle(CPU).endswith(
        "does not compile or run here: gcc: command not found"
    )
    monkeypatch.setattr("lipcast.models.kernels.operators.rms_norm", lambda x, *_: x + 1)
    assert choice.triton_obstacle(CPU) == "Triton computes something else here"


def test_a_gpu_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner asks, then the transformer, then the autoencoder; another GPU is another question."""
    tried: list[torch.device] = []
    monkeypatch.setattr(choice, "_obstacle", lambda device: str(tried.append(device) or "broken"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    choice._obstacle_of_gpu.cache_clear()
    other = torch.device("cuda", 1)
    try:
        for device in (GPU, GPU, other, GPU):
            assert choose_kernels("auto", device, DiTConfig()).reason == "broken"
            assert choice.choose_conv_kernels("auto", device, torch.bfloat16) is None
        assert tried == [GPU, other]
    finally:
        choice._obstacle_of_gpu.cache_clear()


@pytest.mark.parametrize(
    ("capability", "in_place"),
    [((9, 0), False), ((10, 0), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)],
)
def test_attention_reads_in_place_where_cudnn_is_no_faster(
    capability: tuple[int, int], in_place: bool
) -> None:
    """Whatever the ring's precision; and the planner knows it."""
    assert FusedKernels(capability).attends_in_place is in_place
    for forced in (True, False):
        assert FusedKernels(capability, in_place=forced).attends_in_place is forced
    assert (capability[0] in CUDNN_MAJORS) is not in_place
    card = {(9, 0): "h100", (10, 0): "b200", (8, 0): "a30", (8, 9): "rtx4090", (12, 0): "rtx5090"}
    assert (costs.key_reading(gpu(card[capability])) == "in place") is in_place
    assert costs.key_reading(expected_kernels(gpu("rtx4090"), "plain")) == "joined"


@pytest.mark.parametrize(
    ("card", "attention", "reading"),
    [
        ("rtx4090", "auto", "in place"),
        ("rtx4090", "triton", "in place"),
        ("rtx4090", "sdpa", "joined"),
        ("rtx4090", "xformers", "by parts"),
        ("h100", "auto", "by parts"),
        ("h100", "sdpa", "by parts"),
        ("h100", "fa3", "by parts"),
        ("h100", "triton", "in place"),
    ],
)
def test_the_planner_knows_which_attention_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, card: str, attention: AttentionChoice, reading: str
) -> None:
    """As the kernels attend that are chosen on such a card; joining needs memory."""
    capability = (9, 0) if card == "h100" else (8, 9)
    monkeypatch.setattr(choice, "triton_obstacle", lambda _: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(AttentionBackend, "obstacle", lambda *_, **__: "")
    kernels = choose_kernels("auto", GPU, DiTConfig(), attention=attention).kernels
    assert isinstance(kernels, FusedKernels)
    assert kernels.attends_in_place is (reading == "in place")
    if reading != "in place":
        assert (kernels.attention is not None) is (reading == "by parts")
    hardware = expected_kernels(gpu(card), "auto", attention=attention)
    assert costs.key_reading(hardware) == reading
    request = plan_request({"gpu": card, "attention": attention})
    assert costs.key_reading(request.hardware) == reading


def test_kernels_are_launched_on_the_gpu_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is new has chosen the first GPU; Triton asks the thread."""
    chosen: list[torch.device] = []

    @contextmanager
    def choosing(device: torch.device) -> Iterator[None]:
        chosen.append(device)
        yield
        chosen.append(CPU)

    monkeypatch.setattr(torch.cuda, "device", choosing)
    launch = on_its_device(lambda *args: (list(chosen), args))
    second = SimpleNamespace(device=torch.device("cuda", 1))
    assert launch([second], 3) == ([second.device], ([second], 3))
    assert chosen == [second.device, CPU]
    here = torch.ones(2)
    assert launch(here) == ([second.device, CPU], (here,)) and len(chosen) == 2


@pytest.mark.parametrize("dim", [1, 16, 17, 5120, 13824])
def test_a_row_fits_its_block(dim: int) -> None:
    block = row_block(dim)
    assert dim <= block["BLOCK"] < 2 * max(dim, 16) and 1 <= block["num_warps"] <= 16


def decibels(one: Any, other: Any) -> float:
    error = float(((one.astype(float) - other.astype(float)) ** 2).mean())
    return 99.0 if error == 0 else float(10 * torch.tensor(255**2 / error).log10())


@pytest.mark.slow
@pytest.mark.timeout(900)  # thousands of interpreted programs
@pytest.mark.parametrize(("kv_precision", "least_db"), [("fp32", 60.0), ("int4", 38.0)])
def test_frames_of_the_embedded_model(
    sound: Callable[[float], Path], kv_precision: Any, least_db: float
) -> None:
    """One block. With float32 throughout both differ by the order of sums only; a number that falls on
    the other side of a rounding step of the ring costs as much as that step."""
    frames = []
    for kernels in ("plain", "triton"):
        model = lipcast.load(
            "tiny", device="cpu", precision="fp32", kernels=kernels, kv_precision=kv_precision
        )
        assert model.bundle.dit.kernels.name == kernels
        portrait = EXAMPLES / "portrait_0.png"
        video = model.generate(
            image=portrait,
            audio=sound(0.5),
            size="64*64",
            infer_frames=12,
            num_clip=1,
            sample_steps=1,
        )
        frames.append(video.frames)
    assert frames[0].shape == frames[1].shape and frames[0].std() > 10
    assert decibels(*frames) > least_db


@pytest.mark.slow
@pytest.mark.timeout(900)  # attention takes the compiler most of it
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_for_every_gpu(capability: int) -> None:
    """Within registers: what passes over memory spills nothing, attention a few numbers per thread."""
    kernels = compiled(
        "from lipcast.lab.kernel_compile import compile_kernels",
        f"compile_kernels(capabilities=({capability},))",
    )
    assert len(kernels) == 7 + 3 * 3 + 4
    for kernel in kernels:
        attends = kernel["label"].startswith("attention")
        multiplies = kernel["label"].startswith("product")
        limit = 255 if attends else 200 if multiplies else 96
        assert kernel["registers"] <= limit, kernel
        assert kernel["spilled_bytes"] <= (128 if attends else 0), kernel
        assert kernel["shared_bytes"] <= SHARED_BYTES[capability], kernel


def test_attention_blocks_are_small_enough_for_any_card() -> None:
    for planes in (1, 2, 3):
        block = attention_block(planes)
        tiles = 2 * 128 * (block["BLOCK_Q"] + 2 * block["num_stages"] * block["BLOCK_K"])
        assert tiles <= SHARED_BYTES[120]
