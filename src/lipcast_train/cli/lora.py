"""`lipcast-train lora`: an adapter of a checkpoint, trained on a folder of clips.

Input: a folder of videos with sound, a checkpoint, the shape of the adapter. Output: one file for `--lora`,
and what the training came to, as lines or as one JSON document. The memory is planned and printed before
anything is loaded.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipcast.cli.command import Option, Section, command
from lipcast.cli.console import Console
from lipcast.cli.options import CONSOLE, LORA, MODEL
from lipcast.cli.request import DEFAULT_MODEL
from lipcast.cli.types import COUNT, FILE, FOLDER
from lipcast.config.geometry import SIZE_MULTIPLE
from lipcast.config.precision import PRECISIONS
from lipcast.errors import UsageError

if TYPE_CHECKING:
    import torch

    from lipcast_train.lora.memory import TrainingMemory
    from lipcast_train.lora.training import LoraRequest, LoraResult
    from lipcast_train.training.state import Progress

_LARGEST_SIDE = 512
"""Side of the pictures where the model has no size of its own: about the area of 704 x 384."""
_CLIP_WINDOWS = 2
"""Length of a clip, in windows."""
_NUM_REPORTS = 50


@command(
    "lora",
    (
        Option(
            "data", "Folder of videos with sound; NAME.txt beside NAME.mp4 is its prompt.",
            section=Section.FILES, type=FOLDER, required=True,
        ),
        MODEL,
        LORA,
        Option(
            "out", "Adapter file to write, .safetensors. Its state and the encoded clips lie beside it.",
            section=Section.FILES, also=("-o", "--output"), type=FILE, default="style.safetensors",
            show_default=True,
        ),
        Option(
            "rank", "Rank of the adapters.",
            type=COUNT, default=32, show_default=True, metavar="N",
        ),
        Option(
            "alpha", "Strength of the adapters is alpha / rank.",
            type=click.FloatRange(min=0, min_open=True), metavar="X", show_default="the rank",
        ),
        Option(
            "targets", "Layers to adapt: self_attn, cross_attn, ffn, audio, separated by commas.",
            metavar="LIST", show_default="all of them",
        ),
        Option("steps", "Optimiser steps.", type=COUNT, default=500, show_default=True, metavar="N"),
        Option(
            "learning_rate", "Highest learning rate of AdamW; it falls to almost nothing at the end.",
            type=click.FloatRange(min=0, min_open=True), default=1e-4, show_default=True, metavar="X",
        ),
        Option(
            "batch", "Windows of each step.", type=COUNT, default=1, show_default=True, metavar="N"
        ),
        Option(
            "blocks", "Blocks of 12 frames in a window.",
            type=COUNT, show_default="as many as the model remembers", metavar="N",
        ),
        Option(
            "side", "Height and width of the pictures in pixels, a multiple of 64.",
            type=COUNT, show_default="the model's, else 512", metavar="N",
        ),
        Option("seed", "Seed of everything random.", type=int, default=0, show_default=True, metavar="N"),
        Option(
            "resume", "Continue the training whose state lies beside the file.",
            is_flag=True, default=False,
        ),
        Option(
            "weights", "Format that the weights of the model are kept in while its adapters are trained.",
            section=Section.COMPUTE, type=click.Choice(PRECISIONS), show_default="bf16, on a CPU fp32",
        ),
        Option(
            "device", "Device to train on, such as cuda or cpu.",
            section=Section.COMPUTE, metavar="DEVICE", show_default="a GPU if there is one",
        ),
        Option(
            "vram", 'Memory of the device that may be used, such as "24GB".',
            section=Section.COMPUTE, metavar="BYTES", show_default="what is free",
        ),
        Option(
            "dry_run", "Print the memory that the training needs, and stop.",
            section=Section.COMPUTE, is_flag=True, default=False,
        ),
        *CONSOLE,
    ),
    when_stopped="the state that was saved last is kept, and the same command with --resume continues",
    examples=(
        "lipcast-train lora --data clips/ --model tiny --steps 200 --out style.safetensors",
        "lipcast-train lora --data clips/ --model live-avatar-14b --weights fp8 --dry_run",
        "lipcast generate --lora style.safetensors --image me.png --audio hello.wav",
    ),
)  # fmt: skip
def lora(console: Console, **flags: Any) -> None:
    """Train an adapter (LoRA) of a model on a folder of clips.

    The weights of the model stay as they are, in any format. Latents, voices and prompts are encoded once and
    kept on the disk. A training that was stopped continues to the same result.
    """
    from lipcast_train.data.folder import FolderClips
    from lipcast_train.lora.memory import check_memory, plan_memory
    from lipcast_train.lora.training import train_lora, training_shape

    request, side = _request(flags)
    clips = FolderClips(flags["data"], num_blocks=_CLIP_WINDOWS * _blocks(request), side=side)
    if flags["dry_run"]:
        shape = training_shape(request, clips)
        memory = plan_memory(shape)
        text = "\n".join((f"{len(clips)} clips of {side}*{side}", *memory.lines()))
        console.result({"status": "planned", "memory": _memory_document(memory)}, text)
        check_memory(shape, request.available_bytes)
        return
    watch = _Watch(console)
    result = train_lora(request, clips, report=console.log, progress=watch.report)
    clips.close()
    if console.as_json or not console.quiet:
        console.result(_document(request, result), _as_text(result))


def _request(flags: dict[str, Any]) -> tuple[LoraRequest, int]:
    """Return what is asked for, and the side of the pictures. Raises UsageError."""
    from lipcast.engine.loading import read_device
    from lipcast.weights.checkpoint import checkpoint_dir
    from lipcast.weights.configs import read_configs
    from lipcast.weights.disk import make_directory
    from lipcast_train.data.stamp import stamp_of
    from lipcast_train.lora.adapters import TARGETS, AdapterOptions, parse_targets
    from lipcast_train.lora.training import LoraRequest, training_precision
    from lipcast_train.training.loop import Recipe

    out: Path = flags["out"]
    if out.suffix != ".safetensors":
        raise UsageError(f"out: expected a file that ends in .safetensors, got {out.name}")
    device = read_device(flags["device"])
    model = checkpoint_dir(flags["model"] or DEFAULT_MODEL)
    config = read_configs(model).dit
    side = flags["side"] or min(config.height, config.width) or _LARGEST_SIDE
    if side % SIZE_MULTIPLE:
        raise UsageError(f"side: expected a multiple of {SIZE_MULTIPLE}, got {side}")
    weights, dtype = training_precision(flags["weights"], device)
    make_directory(out.parent)
    targets = parse_targets(flags["targets"]) if flags["targets"] else tuple(TARGETS)
    request = LoraRequest(
        model=model,
        out=out,
        device=device,
        dtype=dtype,
        weights=weights,
        recipe=Recipe(
            flags["steps"], flags["batch"], flags["learning_rate"], weight_decay=0.0, average=0.99
        ),
        available_bytes=_available_bytes(flags["vram"], device),
        adapters=AdapterOptions(flags["rank"], flags["alpha"] or float(flags["rank"]), targets),
        num_blocks=flags["blocks"],
        seed=flags["seed"],
        resume=flags["resume"],
        loras=flags["lora"],
        data_identity=f"{side}\n{stamp_of(flags['data'])}",
    )
    return request, side


def _blocks(request: LoraRequest) -> int:
    from lipcast_train.lora.training import window_blocks

    return window_blocks(request)


def _available_bytes(vram: str | None, device: torch.device) -> int:
    import psutil

    from lipcast.config.memory_options import MemoryOptions
    from lipcast.engine.planner_inputs import free_bytes

    is_gpu = device.type == "cuda"
    free = free_bytes(device) if is_gpu else psutil.virtual_memory().available
    return MemoryOptions(vram=vram).budget_bytes("vram", free)


@dataclass
class _Watch:
    """Prints how a training comes along."""

    console: Console
    began: float = field(default_factory=time.perf_counter)
    first_step: int | None = None

    def report(self, _: str, progress: Progress, num_steps: int) -> None:
        """Print a line now and then."""
        if self.first_step is None:
            self.first_step, self.began = progress.step, time.perf_counter()
        taken = progress.step - self.first_step
        if progress.step % max(1, num_steps // _NUM_REPORTS) and progress.step != num_steps:
            return
        recent = progress.losses[-10:]
        each = f", {(time.perf_counter() - self.began) / taken:.2f} s a step" if taken else ""
        loss = sum(recent) / len(recent)
        self.console.log(f"step {progress.step} of {num_steps}: loss {loss:.4f}{each}")


def _memory_document(memory: TrainingMemory) -> dict[str, int]:
    return {**asdict(memory), "total": memory.total}


def _document(request: LoraRequest, result: LoraResult) -> dict[str, Any]:
    """Return what was made, as JSON values."""
    return {
        "status": "finished",
        "output": str(result.path.resolve()),
        "steps": result.progress.step,
        "loss_before": result.loss_before,
        "loss_after": result.loss_after,
        "rank": request.adapters.rank,
        "alpha": request.adapters.alpha,
        "targets": list(request.adapters.targets),
        "weights": request.weights,
        "memory": _memory_document(result.memory),
    }


def _as_text(result: LoraResult) -> str:
    return (
        f"{result.path}: {result.progress.step} steps; loss on the same windows and noise "
        f"{result.loss_before:.4f} before, {result.loss_after:.4f} after\n"
        f"try it: lipcast generate --lora {result.path} --image me.png --audio hello.wav"
    )
