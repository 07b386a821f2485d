"""The state of a phase on the disk: one safetensors file, whole or not there.

Tensors are named by what they are: `model.NAME`, `average.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`. The
metadata has the step and the losses so far. A finished phase keeps its average only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.weights.files import open_tensors
from lipcast.weights.writer import write_tensors

_KEY = "lipcast_train"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase has come: steps done, and the loss of each."""

    step: int = 0
    losses: tuple[float, ...] = ()
    identity: str = ""
    """What is trained on what; the state of something else is not continued."""

    @property
    def loss_factor(self) -> float:
        """Loss of the first tenth over the loss of the last tenth."""
        count = max(1, len(self.losses) // 10)
        first, last = sum(self.losses[:count]), sum(self.losses[-count:])
        return first / last if last > 0 else float("nan")


def write_state(path: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write a state in place of the one before. Raises OutputError."""
    content = {
        "step": progress.step, "losses": progress.losses, "identity": progress.identity,
    }  # fmt: skip
    write_tensors(path, tensors, metadata={_KEY: json.dumps(content)})


def read_progress(path: Path) -> Progress:
    """Return how far the phase of a state file has come; no step where there is no file."""
    if not path.exists():
        return Progress()
    try:
        content = json.loads(open_tensors(path).metadata[_KEY])
        return Progress(content["step"], tuple(content["losses"]), content["identity"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected the state of a training, got another file; delete it, or give "
            "another folder"
        ) from error


def read_state(path: Path, kind: str) -> dict[str, Tensor]:
    """Return the tensors of one kind, such as `model`, by name."""
    source = open_tensors(path)
    names = [name for name in source.infos if name.startswith(f"{kind}.")]
    return {name.removeprefix(f"{kind}."): source.read(name) for name in names}
