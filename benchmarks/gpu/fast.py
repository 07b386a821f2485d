"""The check `fast`: true shapes with random weights, against this very card's ceilings and the plan."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, get_args
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

import lipcast
from gpu.checkpoints import FULL, SMALL, RandomCheckpoint, random_checkpoint, room_for_bytes
from gpu.products import products
from gpu.report import Report, Settings
from gpu.runner import Part
from gpu.steps import (
    StepTimes,
    TickTimes,
    host_launches,
    memory_of,
    paced_video,
    profiled,
    timed_steps,
    timed_ticks,
    without_decoding,
)
from gpu.timing import median_ms
from gpu.videos import make_video
from lipcast.config.gpu_options import GRAPH_CHOICES, GraphChoice, KernelName
from lipcast.config.models import DiTConfig
from lipcast.config.precision import StoredPrecision
from lipcast.engine.backend import LocalBackend
from lipcast.engine.executor import LaneExecutor
from lipcast.engine.loading import LoadSettings, load_networks
from lipcast.engine.planner_inputs import default_geometry
from lipcast.lab.gpu_work import StepCase, count_step
from lipcast.models.attention_backends import BACKENDS, SDPA
from lipcast.models.dit import apply_kernels
from lipcast.models.kernels.fused import FusedKernels
from lipcast.models.kernels.plain import Kernels
from lipcast.models.quant_formats import FP8, FP8_MAX, to_fp8
from lipcast.models.vae import VideoVAE
from lipcast.planning.start import start_time
from lipcast.weights.fp8 import has_fp8_matmul, linear_row_wise

_PLAN_ERROR = 0.15
"""Predicted against measured."""
_BF16_DISK_BYTES = 45e9
_STEADY_TICK = 40
"""Rings are full, and what is recorded has been: the 14th block of 3 ticks."""
_GROUPS = {
    "gemm": ("gemm", "nvjet", "cutlass", "cublas", "_scaled_mm", "xmma"),
    "attention": ("flash", "fmha", "cudnn_generated", "sdpa", "attend"),
    "copies": ("memcpy", "memset", "copy", "cat"),
    "norms": ("norm",),
    "reductions": ("reduce",),
}
"""Rows of the table of kernels, by words in their names; what is left is elementwise."""


def ceilings(settings: Settings, report: Report) -> None:
    """Products, attention and copies alone: what a step cannot be faster than."""
    rows = 3168 if settings.is_full else 48
    dim, hidden = (5120, 13_824) if settings.is_full else (64, 128)
    keys = 15_312 if settings.is_full else 96
    calls = {(dim, dim): 264, (dim, hidden): 40, (hidden, dim): 40}
    attend_ms = median_ms(_attention(rows, keys, settings), settings)
    report.figure("attention ms", attend_ms)
    kinds = ("bf16", "fp8") if has_fp8_matmul(settings.device) else ("bf16",)
    for kind in kinds:
        each = {k_n: median_ms(_product(kind, rows, *k_n, settings), settings) for k_n in calls}
        report.figure(f"{kind} products ms", {str(k_n): ms for k_n, ms in each.items()})
        step = sum(each[k_n] * count for k_n, count in calls.items()) + 40 * attend_ms
        report.figure(f"{kind} step ms", round(step, 2))
    if "fp8" in kinds:
        # Whether a scale per row costs more than it is worth, as it did for the longest sums.
        whole = {
            k_n: median_ms(_product("fp8 per tensor", rows, *k_n, settings), settings)
            for k_n in calls
        }
        report.figure("fp8 products ms, one scale", {str(k_n): ms for k_n, ms in whole.items()})
    copied = torch.empty((1 << 30) if settings.is_full else (1 << 20), dtype=torch.uint8)
    there = copied.to(settings.device)
    seconds = median_ms(there.clone, settings) / 1e3
    report.figure("copy GB/s", round(2 * there.nbytes / seconds / 1e9, 1))


def _product(kind: str, rows: int, num_in: int, num_out: int, settings: Settings) -> Any:
    """One product with its bias, over weights that take turns, so that none stays in a cache."""
    x = torch.randn(rows, num_in, device=settings.device).bfloat16()
    bias = torch.randn(num_out, device=settings.device).bfloat16()
    weights = [
        (torch.randn(num_out, num_in, device=settings.device) * 0.02).bfloat16() for _ in range(4)
    ]
    if kind == "bf16":
        work: Any = partial(functional.linear, bias=bias)
        operands: list[tuple[Tensor, ...]] = [(x, weight) for weight in weights]
    else:
        # The activations are quantised in the loop too; their part is in the table of kernels.
        scale = torch.full((num_out,), 1e-3, device=settings.device)
        work = linear_row_wise if kind == "fp8" else _per_tensor
        operands = [(x, weight.to(FP8), scale, bias) for weight in weights]
    turn = iter(range(1 << 30))
    return lambda: work(*operands[next(turn) % len(operands)])


def _per_tensor(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The product with one scale for all rows of x, and one for the weight."""
    scale_x = x.abs().amax().float() / FP8_MAX
    product: Tensor = torch._scaled_mm(
        to_fp8(x / scale_x), qweight.t(), scale_a=scale_x, scale_b=scale[0], bias=bias,
        out_dtype=torch.bfloat16, use_fast_accum=True,
    )  # fmt: skip
    return product


def _attention(rows: int, keys: int, settings: Settings) -> Any:
    heads = 40 if settings.is_full else 2
    q, k, v = (
        torch.randn(1, heads, n, 128, device=settings.device).bfloat16() for n in (rows, keys, keys)
    )
    return lambda: functional.scaled_dot_product_attention(q, k, v)


def steps(precision: StoredPrecision, settings: Settings, report: Report) -> None:
    """Milliseconds of a step in every order and size, against the plan."""
    if precision == "bf16" and settings.is_full and room_for_bytes() < _BF16_DISK_BYTES:
        report.skip("bf16 steps are as planned", "no room on the disk for the checkpoint")
        return
    checkpoint, model = _loaded(settings, precision)
    for name, options in _videos(settings).items():
        with report.attempt(f"{precision}, {name}: the video is made"):
            with timed_steps(settings) as times, without_decoding(model):
                made = make_video(model, 8, prompt=checkpoint.prompt, **options)
            _claim_steps(report, f"{precision}, {name}", times, memory_of(made))


def _claim_steps(report: Report, name: str, times: StepTimes, memory: dict[str, Any]) -> None:
    report.claim(f"{name}: the outputs are finite", times.finite, times.finite)
    num_lanes = max(times.lanes)
    step_ms = times.steady("device_ms", num_lanes=num_lanes)
    host_ms = times.steady("host_ms", num_lanes=num_lanes)
    figures = {"lanes": num_lanes, "tick ms": step_ms, "host ms": host_ms}
    if memory:
        plan = memory["plan"]
        ticks = plan["video"]["evaluations_per_block"] / plan["lanes"]
        figures["planned ms"] = planned = round(
            1e3 * plan["seconds_per_block"]["compute"] / ticks, 1
        )
        error = planned / step_ms - 1
        text = f"{name}: a tick is as planned within {_PLAN_ERROR:.0%}"
        report.claim(text, abs(error) <= _PLAN_ERROR, f"{step_ms} ms, planned {planned}")
    report.figure(name, figures)


def plain_and_fused(settings: Settings, report: Report) -> None:
    """A step with either kind of kernels, and with fused ones and every way to attend."""
    if not settings.is_cuda:
        report.skip("fused kernels are faster than plain ones", "no CUDA device")
        return
    checkpoint, model = _loaded(settings, "fp8")
    capability = torch.cuda.get_device_capability(settings.device)
    kinds: dict[str, Kernels] = {
        "plain": Kernels(),
        "triton, joined": FusedKernels(capability, in_place=False, merges=False),
        "triton, in place": FusedKernels(capability, in_place=True),
        "triton, by parts": FusedKernels(capability, in_place=False, attention=SDPA),
    }
    for library, backend in BACKENDS.items():
        obstacle = backend.obstacle(
            settings.device, capability, dtype=torch.bfloat16, head_dim=DiTConfig().head_dim
        )
        if obstacle:
            report.figure(f"attention by {library}", obstacle)
        else:
            kinds[f"triton, {library}"] = FusedKernels(
                capability, in_place=False, attention=backend
            )
    found = {}
    for name, chosen in kinds.items():
        with report.attempt(f"{name}: the video is made"):
            apply_kernels(model.bundle.dit, chosen)
            with timed_steps(settings) as times, without_decoding(model):
                make_video(model, 6, prompt=checkpoint.prompt, size="704*384", infer_frames=48)
            lanes = max(times.lanes)
            found[name] = times.steady("device_ms", num_lanes=lanes)
            host_ms = times.steady("host_ms", num_lanes=lanes)
            report.figure(name, {"lanes": lanes, "tick ms": found[name], "host ms": host_ms})
    best = min(ms for name, ms in found.items() if name != "plain")
    report.claim("fused kernels are faster than plain ones", best < found["plain"], str(found))


def graphs(settings: Settings, report: Report) -> None:
    """Ticks that are recorded and replayed, and the same launched kernel by kernel."""
    text = "a recorded tick is as fast as one that is launched kernel by kernel, or faster"
    if not settings.is_cuda:
        report.skip(text, "no CUDA device")
        return
    shapes: dict[str, dict[str, Any]] = {
        "704x384": {"size": "704*384", "infer_frames": 48},
        "384x256": {"size": "384*256", "infer_frames": 48},
    }
    for name, options in shapes.items():
        found = {
            choice: _ticks(choice, options, settings, report, name) for choice in GRAPH_CHOICES
        }
        device_ms = {choice: times.steady("device_ms") for choice, times in found.items()}
        host_ms = {choice: times.steady("host_ms") for choice, times in found.items()}
        report.figure(f"{name}: tick ms", device_ms)
        report.figure(f"{name}: host ms", host_ms)
        report.claim(f"{name}: {text}", device_ms["auto"] <= 1.02 * device_ms["off"], device_ms)
        report.claim(f"{name}: recording spares the host 9 of 10 ms",
                     host_ms["auto"] <= 0.1 * host_ms["off"], host_ms)  # fmt: skip


def _ticks(
    choice: GraphChoice, options: dict[str, Any], settings: Settings, report: Report, name: str
) -> TickTimes:
    checkpoint, model = _loaded(settings, "fp8", cuda_graphs=choice)
    run = LaneExecutor.run
    calls = launched = 0

    def profiled_once(self: LaneExecutor, tick: Any) -> Any:
        nonlocal calls, launched
        calls += 1
        if calls != _STEADY_TICK:
            return run(self, tick)
        results: list[Any] = []
        launched = host_launches(lambda: results.append(run(self, tick)))
        return results[0]

    with mock.patch.object(LaneExecutor, "run", profiled_once), without_decoding(model):
        make_video(model, 14, prompt=checkpoint.prompt, **options)
    with timed_ticks() as times, without_decoding(model):
        made = make_video(model, 14, prompt=checkpoint.prompt, **options)
    report.figure(f"{name}, {choice}: launches of a tick", launched)
    if choice == "auto":
        counts = made.report.get("graphs", {})
        text = f"{name}: ticks are recorded, and replayed"
        report.claim(text, counts.get("replayed", 0) > 0 and not counts.get("refusal"), counts)
        report.claim(f"{name}: the host launches at most 10 times a tick",
                     0 < launched <= 10, launched)  # fmt: skip
    report.figure(f"{name}, {choice}: memory", memory_of(made).get("measured", {}))
    return times


def loading(settings: Settings, report: Report) -> None:
    """Seconds from the files to a model, stored as it is used and quantised on the way."""
    for stored in ("fp8", "bf16"):
        if stored == "bf16" and settings.is_full and room_for_bytes() < _BF16_DISK_BYTES:
            report.skip("loading bf16 as fp8 is as planned", "no room on the disk")
            continue
        checkpoint = random_checkpoint(settings.model, FULL if settings.is_full else SMALL, stored)
        began_s = time.perf_counter()
        model = lipcast.load(checkpoint.folder, device=str(settings.device), precision="fp8")
        seconds = round(time.perf_counter() - began_s, 2)
        report.figure(f"{stored} as fp8: s", seconds)
        text = f"{stored} weights are loaded as fp8 within the planned seconds"
        if not isinstance(model.backend, LocalBackend) or model.backend.manager is None:
            report.skip(text, "no plan on this device")
            continue
        manager = model.backend.manager
        plan = manager.first_plan(default_geometry(manager.inputs.models))
        start = start_time(plan, converted=stored == "fp8")
        planned = start.process_s + max(start.read_s, start.quantise_s) + start.pin_s
        report.claim(text, seconds <= planned, f"{seconds} s, planned {planned:.1f}")


def kernels(settings: Settings, report: Report) -> None:
    """Where the milliseconds of one step go, and how many kernels they are."""
    text = "a step launches no more kernels than counted"
    if not settings.is_cuda:
        report.skip(text, "no CUDA device")
        return
    checkpoint, model = _loaded(settings, "fp8")
    rows: list[tuple[str, int, float]] = []
    forward = model.bundle.dit.forward
    calls = 0

    def watched(lanes: Any) -> Any:
        nonlocal calls, rows
        calls += 1
        if calls != 20:
            return forward(lanes)
        results: list[Any] = []
        rows = profiled(lambda: results.append(forward(lanes)))
        return results[0]

    model.bundle.dit.forward = watched  # type: ignore[method-assign]
    with without_decoding(model):
        make_video(model, 8, prompt=checkpoint.prompt, size="704*384", infer_frames=48)
    report.figure("by group", _grouped(rows))
    report.figure("longest", [(name[:90], count, round(ms, 3)) for name, count, ms in rows[:40]])
    launched = sum(count for _, count, _ in rows)
    counted = count_step(DiTConfig(), StepCase("fp8")).total(DiTConfig()).launches
    report.claim(text, launched <= 1.05 * counted, f"{launched} launched, {counted} counted")


def _grouped(rows: list[tuple[str, int, float]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, count, milliseconds in rows:
        lower = name.lower()
        group = next(
            (g for g, words in _GROUPS.items() if any(word in lower for word in words)),
            "elementwise",
        )
        row = found.setdefault(group, {"launches": 0, "ms": 0.0})
        row["launches"] += count
        row["ms"] = round(row["ms"] + milliseconds, 3)
    return found


def decoder(settings: Settings, report: Report) -> None:
    """Milliseconds of the autoencoder's parts, fused and as PyTorch's operators."""
    shapes = FULL if settings.is_full else SMALL
    checkpoint = random_checkpoint(settings.model, shapes, "fp8")
    dtype = torch.bfloat16 if settings.is_cuda else torch.float32
    for kernels in get_args(KernelName) if settings.is_cuda else ("plain",):
        loading = LoadSettings(checkpoint.folder, settings.device, dtype, kernels=kernels)
        bundle, _ = load_networks(loading, networks=("vae",))
        _time_autoencoder(bundle.vae, kernels, settings, report)


def _time_autoencoder(vae: VideoVAE, kernels: str, settings: Settings, report: Report) -> None:
    height, width = (88, 48) if settings.is_full else (8, 8)
    latents = torch.randn(1, vae.config.z_dim, 7, height, width, device=settings.device)
    image = torch.rand(1, 3, 8 * height, 8 * width, device=settings.device) * 2 - 1
    with torch.inference_mode():
        state = vae.new_decoder_state()
        vae.prime(latents, state)
        parts = {
            "decode a block": partial(vae.decode_chunk, latents[:, :, :3], state),
            "prime": lambda: vae.prime(latents, vae.new_decoder_state()),
            "encode a portrait": partial(vae.encode_still, image, 73),
        }
        for name, work in parts.items():
            report.figure(f"{kernels}: {name} ms", median_ms(work, settings, repeats=3))
        frames = vae.decode_chunk(latents[:, :, :3], state)
    finite = bool(torch.isfinite(frames).all())
    report.claim(f"{kernels}: decoded frames are finite", finite, finite)


def end_to_end(settings: Settings, report: Report) -> None:
    """Sound in, frames out: frames per second against the plan."""
    checkpoint, model = _loaded(settings, "fp8", cuda_graphs="auto")
    options = next(iter(_videos(settings).values()))
    paced = paced_video(model, 12, prompt=checkpoint.prompt, **options)
    frames_per_s = 12 / paced.block_s
    report.figure("frames/s", round(frames_per_s, 2))
    memory = memory_of(paced.made)
    if not settings.is_cuda:
        report.skip("frames per second are as planned", "the rates of a CPU are not known")
        return
    planned = memory["plan"]["frames_per_s"]
    error = planned / frames_per_s - 1
    text = f"frames per second are as planned within {_PLAN_ERROR:.0%}"
    found = f"{frames_per_s:.2f}, planned {planned}"
    report.claim(text, abs(error) <= _PLAN_ERROR, found)


def _loaded(
    settings: Settings, precision: StoredPrecision, *, cuda_graphs: GraphChoice = "off"
) -> tuple[RandomCheckpoint, lipcast.Lipcast]:
    """The model; what times or watches the transformer's passes needs them launched one by one."""
    shapes = FULL if settings.is_full else SMALL
    checkpoint = random_checkpoint(settings.model, shapes, precision)
    device = str(settings.device)
    return checkpoint, lipcast.load(checkpoint.folder, device=device, cuda_graphs=cuda_graphs)


def _videos(settings: Settings) -> dict[str, dict[str, Any]]:
    """Options of the videos that are timed."""
    if not settings.is_full:
        return {"64x64": {"size": "64*64", "infer_frames": 12}}
    return {
        "704x384": {"size": "704*384", "infer_frames": 48},
        "704x384, wavefront": {"size": "704*384", "infer_frames": 48, "schedule": "wavefront"},
        "704x384, 32 frames": {"size": "704*384", "infer_frames": 32},
        "384x256": {"size": "384*256", "infer_frames": 48},
    }


PARTS = (
    Part("ceilings", ceilings, 60),
    Part("fp8", partial(steps, "fp8"), 150),
    Part("kernels", kernels, 70),
    Part("products", products, 60),
    Part("plain", plain_and_fused, 80),
    Part("graphs", graphs, 120),
    Part("load", loading, 120),
    Part("decoder", decoder, 60),
    Part("end", end_to_end, 70),
    Part("bf16", partial(steps, "bf16"), 180),
)
