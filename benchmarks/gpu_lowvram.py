"""The true 14B shapes with random weights under memory budgets: speed, memory, and how true the plan was.

Needs torch and numpy only, from a source checkout, without network. Every cell (size, infer_frames, budget)
runs in its own process, so that one that fails ends nothing. A budget bounds all that torch may take
(`torch.cuda.set_per_process_memory_fraction`). Prints its conditions and a table; the last line of stdout is
one JSON document.

    python benchmarks/gpu_lowvram.py                                   everything, about 40 minutes
    python benchmarks/gpu_lowvram.py --sizes "704*384" --infer-frames 48 --budgets 80 24 12 8
    python benchmarks/gpu_lowvram.py --cpu                             the same code on a small model, no GPU

Weights are random in the stored form (fp8 bytes with constant scales), so nothing about the picture can be
learned here, and nothing about speed is hidden. The prompt's context and the voice are random too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import torch
from torch import Tensor

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.schedule import ticks
from lipcast.config.video_spec import VideoSpec, video_spec
from lipcast.engine.memory_manager import MemoryManager, PlannerInputs
from lipcast.engine.session_builder import Conditioning, SessionBuilder
from lipcast.errors import LipcastError
from lipcast.memory.copier import Copier, Event
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.probe import describe_gpu
from lipcast.models.dit import DiT
from lipcast.models.vae import VideoVAE
from lipcast.planning.hardware import CPU, GIB
from lipcast.planning.memory_options import MemoryOptions
from lipcast.planning.plan import Budget, Models, Plan
from lipcast.planning.sizes import Precision
from lipcast.planning.tensors import dit_tensors
from lipcast.weights.load import without_memory
from lipcast.weights.quant import kept_because
from lipcast.weights.schemes import SCHEMES
from lipcast.weights.source import TensorInfo, TensorSource

PORTRAIT = (1280, 720)
CONTEXT_BYTES = 512 << 20
SMALL = DiTConfig(
    dim=192, ffn_dim=384, num_heads=4, num_layers=6, text_dim=64, text_len=64, audio_dim=64,
    num_audio_layers=4, audio_inject_layers=(0, 3),
)  # fmt: skip
SMALL_VAE = VAEConfig(dim=8, dim_mult=(1, 2, 2, 4), num_res_blocks=1)
NOISE_BYTES = 1 << 22


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    size: str
    infer_frames: int
    budget_gib: float
    precision: Precision
    num_blocks: int
    cpu: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.cpu else "cuda")


class RandomWeights(TensorSource):
    """A transformer's tensors in stored form, made of one piece of noise."""

    def __init__(self, config: DiTConfig, precision: Precision) -> None:
        self.path, self.files, self.metadata = Path("random"), (), {}
        self._noise = torch.randint(0, 120, (NOISE_BYTES,), dtype=torch.uint8)
        self.infos = {info.name: info for info in _infos(config, precision)}

    def read(self, name: str) -> Tensor:
        info, leaf = self.infos[name], name.rpartition(".")[2]
        if leaf == "scale":
            return torch.full(info.shape, 1e-4, dtype=info.dtype)
        if "norm" in name or leaf == "weights":
            return torch.ones(info.shape, dtype=info.dtype)
        if leaf == "qweight":
            repeats = -(-info.num_bytes // NOISE_BYTES)
            return self._noise.repeat(repeats)[: info.num_bytes].view(info.dtype).view(info.shape)
        small = torch.linspace(-0.02, 0.02, NOISE_BYTES // 2).to(info.dtype)
        repeats = -(-info.num_elements // len(small))
        return small.repeat(repeats)[: info.num_elements].view(info.shape)


def _infos(config: DiTConfig, precision: Precision) -> Iterator[TensorInfo]:
    scheme = SCHEMES.get(precision)
    for name, shape in dit_tensors(config).items():
        plain = TensorInfo(name, shape, torch.bfloat16)
        if scheme is None or kept_because(plain) is not None or not scheme.fits(shape[1]):
            yield plain
            continue
        layer = name.removesuffix(".weight")
        for part, (part_shape, dtype) in scheme.part_shapes(*shape).items():
            yield TensorInfo(f"{layer}.{part}", part_shape, dtype)


class CountingCopier:
    """A copier that adds up what it moves."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self.to_device_bytes = 0
        self.to_host_bytes = 0

    def fetch(self, target: Tensor, source: Tensor, *, after: Any) -> Event:
        self.to_device_bytes += source.nbytes
        return self._copier.fetch(target, source, after=after)

    def store(self, target: Tensor, source: Tensor, *, after: Any) -> Event:
        self.to_host_bytes += source.nbytes
        return self._copier.store(target, source, after=after)

    def here(self) -> Event:
        return self._copier.here()

    def wait(self, mark: Event) -> None:
        self._copier.wait(mark)

    def finish(self, mark: Event) -> None:
        self._copier.finish(mark)


@dataclass
class Networks:
    """What a video is computed with."""

    dit: DiT
    vae: VideoVAE
    device: torch.device

    @property
    def decoder(self) -> VideoVAE:
        return self.vae


def main() -> None:
    options = parse()
    if options.cell:
        print(json.dumps(measure(Cell(**json.loads(options.cell)))))
        return
    rows = []
    for cell in cells(options):
        row = run_apart(cell)
        rows.append(row)
        print(line_of(row), flush=True)
    print(json.dumps({"conditions": conditions(options.cpu), "rows": rows}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", nargs="+", default=["704*384", "384*256"])
    parser.add_argument("--infer-frames", nargs="+", type=int, default=[48, 32])
    parser.add_argument("--budgets", nargs="+", type=float, default=[80, 48, 24, 16, 12, 8])
    parser.add_argument("--precision", default="fp8", choices=("bf16", "fp8", "int8", "int4"))
    parser.add_argument("--blocks", type=int, default=6, help="measured, after a full window")
    parser.add_argument("--cpu", action="store_true", help="a small model, no GPU")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cpu:
        options.sizes, options.budgets = ["64*64"], [0.02, 0.012, 0.0095]
    return options


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for size in options.sizes:
        for infer_frames in options.infer_frames:
            for budget in options.budgets:
                yield Cell(
                    size, infer_frames, budget, options.precision, options.blocks, options.cpu
                )


def run_apart(cell: Cell) -> dict[str, Any]:
    """The cell in a fresh process; a failure is a row too."""
    given = {name: getattr(cell, name) for name in cell.__dataclass_fields__}
    command = [sys.executable, __file__, "--cell", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return given | found
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return given | {"failed": last[0]}


# One cell


def measure(cell: Cell) -> dict[str, Any]:
    dit, vae = (SMALL, SMALL_VAE) if cell.cpu else (DiTConfig(), VAEConfig())
    options = GenerateOptions(size=cell.size, infer_frames=cell.infer_frames)
    height, width = (256, 256) if cell.cpu else PORTRAIT
    spec = video_spec(options, dit, vae, height=height, width=width)
    device_context, copier = counted_device_context(cell)
    plain_link = plain_copy_bytes_per_s(cell, device_context)
    memory_manager = MemoryManager(device_context, planner_inputs_of(cell, dit, vae))
    try:
        plan = memory_manager.plan(spec.geometry, options)
    except LipcastError as error:
        return {"refused": str(error)}
    networks = load(memory_manager, plan, dit, vae, cell)
    spec = replace(spec, max_lanes=plan.config.num_lanes)
    context = torch.randn(min(120, dit.text_len), dit.text_dim, device=cell.device)
    video = SessionBuilder(networks, Conditioning(_grey, context), spec, plan, memory_manager)
    run = Run(video, dit, cell)
    run.blocks(
        -(-spec.geometry.window // spec.geometry.latents_per_block) + 2
    )  # a full window, warm
    copier.to_device_bytes = copier.to_host_bytes = 0
    both_s = run.blocks(cell.num_blocks)
    moved = copier.to_device_bytes
    dit_s = run.blocks(cell.num_blocks, decode=False)
    return result(cell, memory_manager, video, plan, both_s, dit_s) | {
        "copied_bytes_per_block": moved // cell.num_blocks,
        "copied_bytes_per_s": moved / (both_s * cell.num_blocks),
        "plain_pinned_copy_bytes_per_s": plain_link,
    }


def counted_device_context(cell: Cell) -> tuple[DeviceContext, CountingCopier]:
    if not cell.cpu:
        total = torch.cuda.get_device_properties(0).total_memory
        wanted = cell.budget_gib * GIB - CONTEXT_BYTES
        torch.cuda.set_per_process_memory_fraction(min(1.0, wanted / total), 0)
    device_context = DeviceContext.of(cell.device)
    copier = CountingCopier(device_context.copier)
    return replace(device_context, copier=copier), copier


def planner_inputs_of(cell: Cell, dit: DiTConfig, vae: VAEConfig) -> PlannerInputs:
    hardware = CPU if cell.cpu else describe_gpu(cell.device)
    budget_bytes = int(cell.budget_gib * GIB)
    vram = budget_bytes if cell.cpu else min(budget_bytes, hardware.memory_bytes)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return PlannerInputs(
        hardware, Budget(vram, ram), MemoryOptions(), Models(dit, vae), cell.precision
    )


def load(
    memory_manager: MemoryManager, plan: Plan, dit: DiTConfig, vae: VAEConfig, cell: Cell
) -> Networks:
    with without_memory():
        model = DiT(dit)
    source = RandomWeights(dit, cell.precision)
    memory_manager.load(model, source, plan=plan, dtype=torch.bfloat16)
    with torch.device(cell.device):
        decoder = VideoVAE(vae)
    decoder.to(torch.float32 if cell.cpu else torch.bfloat16).eval().requires_grad_(False)
    return Networks(model.eval().requires_grad_(False), decoder, cell.device)


def _grey(height: int, width: int) -> Any:
    return np.full((height, width, 3), 128, dtype=np.uint8)


class Run:
    """One video, block after block."""

    def __init__(self, video: SessionBuilder, dit: DiTConfig, cell: Cell) -> None:
        self._parts = video.begin()
        self._device = cell.device
        spec: VideoSpec = self._parts.spec
        self._ticks = ticks(spec.order, max_lanes=spec.max_lanes)
        self._voice = torch.randn(dit.num_audio_layers, dit.audio_dim, 12)

    def blocks(self, count: int, *, decode: bool = True) -> float:
        """Seconds per block over `count` finished blocks, decoding beside the next tick or not."""
        begin, done, pending = self._now(), 0, []
        while done < count:
            tick = next(self._ticks)
            for unit in tick:
                if unit.step == 0:
                    self._parts.executor.start(unit.block, self._voice)
            finished = self._parts.executor.run(tick)
            for frames in pending:
                frames.collect()
            pending = [self._parts.decoder.submit(latent) for _, latent in finished if decode]
            done += len(finished)
        for frames in pending:
            frames.collect()
        return (self._now() - begin) / count

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def result(
    cell: Cell,
    memory_manager: MemoryManager,
    video: SessionBuilder,
    plan: Plan,
    both_s: float,
    dit_s: float,
) -> dict[str, Any]:
    document = memory_manager.document(video.ladder)
    predicted_s, predicted_bytes = plan.time.block_s, plan.vram_bytes
    measured = document["measured"]
    used = nvml_bytes() if not cell.cpu else None
    taken = measured["vram_parts_bytes"]
    parts = document["plan"]["vram"]["generate"]
    return {
        "frames_per_s": 12 / both_s,
        "seconds_per_block": both_s,
        "dit_frames_per_s": 12 / dit_s,
        "dit_seconds_per_block": dit_s,
        "predicted_seconds_per_block": predicted_s,
        "seconds_error": predicted_s / both_s - 1,
        "predicted_bytes": predicted_bytes,
        "nvml_bytes": used,
        "bytes_error": None if used is None else predicted_bytes / used - 1,
        "stores_equal_the_plan": all(parts[part] == count for part, count in taken.items()),
        "memory": document,
    }


def nvml_bytes() -> int | None:
    """What the driver says this card's processes take; None without its tool."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return int(done.stdout.splitlines()[0]) * 2**20 if done.returncode == 0 else None


def plain_copy_bytes_per_s(cell: Cell, device_context: DeviceContext) -> float:
    """Host to device, 256 MiB at a time (16 MiB on a CPU), nothing else running."""
    size = (16 if cell.cpu else 256) << 20
    host, target = (
        device_context.ram.allocate("probe", size),
        device_context.vram.allocate("probe", size),
    )
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        device_context.copier.finish(device_context.copier.fetch(target, host, after=[]))
        times.append(time.perf_counter() - begin)
    for arena, buffer in ((device_context.ram, host), (device_context.vram, target)):
        arena.release(buffer)
        arena.peak_bytes = 0
    return size / median(times)


# Output


def conditions(cpu: bool) -> Mapping[str, Any]:
    return {
        "device": platform.processor() if cpu else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "model": "small" if cpu else "14B shapes, random weights",
    }


def line_of(row: Mapping[str, Any]) -> str:
    head = f"{row['size']:>8} {row['infer_frames']:>3} {row['budget_gib']:>6} GiB  "
    if "failed" in row or "refused" in row:
        return head + str(row.get("failed") or row.get("refused"))
    layers = row["memory"]["plan"]["layers"].count("resident")
    rings = row["memory"]["plan"]["ring_layers"].count("resident")
    taken = [fallback["rung"] for fallback in row["memory"]["fallbacks"]["taken"]]
    return head + (
        f"{row['frames_per_s']:6.2f} frames/s (DiT {row['dit_frames_per_s']:6.2f})  "
        f"{layers} layers, {rings} ring layers resident, {row['memory']['plan']['schedule']}  "
        f"plan {row['seconds_error']:+.0%} s  {', '.join(taken)}"
    )


if __name__ == "__main__":
    main()
