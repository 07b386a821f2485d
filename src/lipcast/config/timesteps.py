"""Timesteps and sigmas of flow matching with an Euler solver.

Input: a number of steps and the shift. Output: `FlowSchedule`, n timesteps and n + 1 sigmas.
The shift acts twice, as in the published checkpoint's training: once on the whole schedule of
1000, whose smallest sigma bounds the steps, and once on the steps. Values are float32 numbers: the
time sinusoid turns a last-digit difference of a timestep into 1e-5 of the latents.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class FlowSchedule:
    """timesteps[i] is given to the model; the latents go from sigmas[i] to sigmas[i + 1]."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)


def flow_schedule(
    num_steps: int, *, shift: float = 3.0, fold_last_step: bool = False
) -> FlowSchedule:
    """Return the sigmas from 1 to 0 in `num_steps` steps; 4 steps: 1, 0.8577, 0.6022, 0.0089, 0.

    `fold_last_step` leaves the last evaluation out: the step before it goes straight to 0.
    One step cannot be folded and stays.
    """
    assert num_steps >= 1
    smallest = _shifted(1 / _NUM_TRAIN_TIMESTEPS, shift)
    count = max(num_steps - 1, 1)
    raw = [1 - (1 - smallest) * i / count for i in range(num_steps)]
    sigmas = [_float32(_shifted(sigma, shift)) for sigma in raw]
    if fold_last_step and num_steps > 1:
        sigmas = sigmas[:-1]
    timesteps = tuple(_float32(_NUM_TRAIN_TIMESTEPS * sigma) for sigma in sigmas)
    return FlowSchedule(timesteps, (*sigmas, 0.0))


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _float32(value: float) -> float:
    """Return the nearest float32 number."""
    nearest: float = struct.unpack("f", struct.pack("f", value))[0]
    return nearest
