"""The training loop: AdamW, a schedule of the learning rate, a moving average of the weights.

Input: a phase: an objective, which is a module that turns a batch into a loss, and batches by step. Output:
the averaged weights in the objective, and a state file. Everything random is a function of (seed, step), so a
training that is continued gives the losses of one that was not interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipcast.weights.disk import make_directory
from lipcast_train.training.devices import Devices, Share, placed_like, whole
from lipcast_train.training.state import Progress, read_progress, read_state, write_state

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LAST_RATE = 0.02
"""Share of the learning rate that is left at the last step."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long a phase is trained, and how fast."""

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 10
    weight_decay: float = 0.01
    max_norm: float = 1.0
    average: float = 0.998
    """Share of the moving average that stays at each step, once there are many."""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a short rise, then half a cosine."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
        return self.learning_rate * rise * (_LAST_RATE + (1 - _LAST_RATE) * fall)

    def kept(self, step: int) -> float:
        """Return the share of the average that stays at a step; short at first."""
        return min(self.average, (1 + step) / (10 + step))


@dataclass(frozen=True, slots=True)
class Phase:
    """One training: `objective(batch)` gives the loss, which is made smaller."""

    name: str
    recipe: Recipe
    objective: nn.Module
    batch: Callable[[int, Share], Any]
    """(step, share) to what the objective takes."""
    identity: str = ""
    sample: Callable[[Path], None] | None = None
    """Writes a picture of what the networks make now."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What surrounds a training."""

    folder: Path
    bf16: bool = False
    save_every_s: float = 60.0
    sample_every: int = 0
    """Steps between pictures; 0: at the end only."""
    deadline: float = math.inf
    """`time.monotonic()` at which the training saves and stops."""
    report: Callable[[str, Progress, int], None] = lambda *_: None
    """Told the phase, how far it has come, and its steps in all."""


def run_phase(phase: Phase, devices: Devices, settings: LoopSettings) -> Progress:
    """Train a phase from its last state on; return how far it came.

    The objective holds the moving average when the phase is finished. Raises OutputError.
    """
    make_directory(settings.folder)
    trainer = _Trainer(phase, devices, settings)
    saved = time.monotonic()
    while trainer.progress.step < phase.recipe.num_steps:
        if devices.any(time.monotonic() >= settings.deadline):
            trainer.save()
            return trainer.progress
        trainer.advance()
        settings.report(phase.name, trainer.progress, phase.recipe.num_steps)
        if devices.any(time.monotonic() - saved > settings.save_every_s):
            trainer.save()
            saved = time.monotonic()
        if settings.sample_every and trainer.progress.step % settings.sample_every == 0:
            trainer.sample()
    trainer.finish()
    return trainer.progress


class _Trainer:
    """A phase in the middle of its training."""

    def __init__(self, phase: Phase, devices: Devices, settings: LoopSettings) -> None:
        self._phase, self._devices, self._settings = phase, devices, settings
        self._path = settings.folder / f"{phase.name}.safetensors"
        self._was_finished = False
        phase.objective.to(devices.device)
        # A copy is sharded: what comes after this phase computes with the whole weights.
        self._objective = phase.objective if devices.mesh is None else deepcopy(phase.objective)
        devices.shard(self._objective)
        self._weights = {n: p for n, p in self._objective.named_parameters() if p.requires_grad}
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._optimiser = torch.optim.AdamW(
            self._weights.values(), lr=phase.recipe.learning_rate, betas=(0.9, 0.98),
            weight_decay=phase.recipe.weight_decay,
        )  # fmt: skip
        self.progress = Progress(identity=phase.identity)
        self._restore()

    def advance(self) -> None:
        """Take one step."""
        recipe, step = self._phase.recipe, self.progress.step
        self._optimiser.param_groups[0]["lr"] = recipe.rate(step)
        batch = self._phase.batch(step, self._devices.share)
        with self._precision():
            loss: Tensor = self._objective(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights.values(), recipe.max_norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        kept = recipe.kept(step)
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._average[name].lerp_(weight.detach(), 1 - kept)
        losses = *self.progress.losses, round(self._devices.mean(loss), 6)
        self.progress = replace(self.progress, step=step + 1, losses=losses)

    def save(self) -> None:
        """Write everything that the next step depends on; nothing before the first."""
        if not self.progress.step:
            return
        tensors = dict(self._named("model", self._weights.items()))
        tensors |= self._named("average", self._average.items())
        for moment in _MOMENTS:
            found = ((n, self._optimiser.state[p][moment]) for n, p in self._weights.items())
            tensors |= self._named(moment, found)
        self._write(tensors)

    def finish(self) -> None:
        """Put the average into the objective, and keep nothing else of the state."""
        averages = self._named("average", self._average.items())
        if not self._was_finished:
            self._write(averages)
        with torch.no_grad():
            for name, weight in self._phase.objective.named_parameters():
                if weight.requires_grad:
                    weight.copy_(averages[f"average.{name}"])
        if not self._was_finished:
            self.sample()

    def sample(self) -> None:
        """Write a picture, of what the average makes."""
        if self._phase.sample is None or self._devices.mesh is not None:
            return
        current = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._assign(self._average)
        name = f"{self._phase.name}-{self.progress.step:06d}.png"
        with torch.no_grad():
            self._phase.sample(self._settings.folder / "samples" / name)
        self._assign(current)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._settings.bf16:
            return torch.autocast(self._devices.device.type, torch.bfloat16)
        return nullcontext()

    def _assign(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(values[name])

    def _named(self, kind: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {f"{kind}.{name}": whole(tensor.detach()) for name, tensor in tensors}

    def _write(self, tensors: dict[str, Tensor]) -> None:
        if self._devices.is_main:
            write_state(self._path, tensors, self.progress)

    def _restore(self) -> None:
        found = read_progress(self._path)
        if not found.step or found.identity != self._phase.identity:
            return
        self.progress = found
        self._load(self._average, "average")
        self._was_finished = found.step >= self._phase.recipe.num_steps
        if self._was_finished:
            return
        current = {name: weight.detach() for name, weight in self._weights.items()}
        self._load(current, "model")
        moments = {moment: read_state(self._path, moment) for moment in _MOMENTS}
        for name, weight in self._weights.items():
            state = {moment: placed_like(moments[moment][name], weight) for moment in _MOMENTS}
            self._optimiser.state[weight] = {"step": torch.tensor(float(found.step)), **state}

    def _load(self, targets: dict[str, Tensor], kind: str) -> None:
        """Copy the stored tensors of one kind into those of the same names."""
        stored = read_state(self._path, kind)
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(placed_like(stored[name], target))
