"""What adapters are trained for: the velocity of flow matching, with the true past and kept prompts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from lipcast.config.timesteps import flow_schedule
from lipcast.models.dit import DiT
from lipcast_train.data.windows import WindowBatch
from lipcast_train.networks.window import prepare_window, window_velocity
from lipcast_train.phases.transformer import conditions_of, flow_matching_loss, noise_level


class AdapterObjective(nn.Module):
    """A frozen transformer with adapters, and the embedded prompts of its clips."""

    def __init__(self, dit: DiT, contexts: Mapping[str, Tensor], *, ring_frames: int) -> None:
        super().__init__()
        self.dit, self._contexts, self._ring_frames = dit, contexts, ring_frames
        config = dit.config
        self._flow = flow_schedule(config.sample_steps, shift=config.sample_shift)

    def forward(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Return the weighted squared error of the velocity."""
        shift = self.dit.config.sample_shift
        sigmas = [noise_level(level, self._flow, shift=shift) for level in batch.levels]
        velocity_of = partial(self._velocity, batch, [1000 * sigma for sigma in sigmas])
        return {"loss": flow_matching_loss(batch, sigmas, velocity_of)}

    def _velocity(self, batch: WindowBatch, times: list[float], latent_BCFHW: Tensor) -> Tensor:
        conditions = conditions_of(batch, self._contexts)
        prepared = prepare_window(self.dit, conditions, ring_frames=self._ring_frames)
        return window_velocity(self.dit, latent_BCFHW, times, prepared).float()
