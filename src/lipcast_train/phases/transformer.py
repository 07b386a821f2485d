"""Phases 4 and 5: the transformer by flow matching, then at the inference steps on its own rollouts.

Both run whole windows in one forward, one timestep a sample. In the second the noisy latents of a window are
what the model itself made of noise in the steps before, so that it sees its own history and its own errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcast.config.timesteps import FlowSchedule, flow_schedule
from lipcast.models.dit import DiT
from lipcast.models.text import TextEncoder
from lipcast.models.vae import VideoVAE
from lipcast_train.data.cache import STILL_LATENTS, LatentCache
from lipcast_train.data.pool import dice
from lipcast_train.data.windows import (
    WindowBatch,
    WindowShape,
    collate,
    draw_window,
    window_batches,
)
from lipcast_train.networks.window import (
    PreparedWindow,
    WindowConditions,
    prepare_window,
    window_velocity,
)
from lipcast_train.training.loop import Phase, Recipe
from lipcast_train.training.pictures import write_strip

_AT_STEPS = 0.7
"""Share of the samples whose noise is that of an inference step."""
_LAST_STEP = 0.05
"""Share of those at the last step, which hardly moves the latents."""
_LEAST_NOISE = 0.02


class WindowModel(nn.Module):
    """A transformer that runs whole windows, and the prompts of their clips."""

    def __init__(
        self, dit: DiT, text: TextEncoder | Mapping[str, Tensor], *, ring_frames: int
    ) -> None:
        """`text`: what embeds prompts, or prompts that were embedded before."""
        super().__init__()
        self.dit, self.text = dit, text
        self._ring_frames = ring_frames
        config = dit.config
        self.flow: FlowSchedule = flow_schedule(config.sample_steps, shift=config.sample_shift)

    def rollout(self, noise_BCFHW: Tensor, num_steps: int, prepared: PreparedWindow) -> Tensor:
        """Return the latents after the first steps from noise."""
        latent, flow = noise_BCFHW, self.flow
        for step in range(num_steps):
            times = [flow.timesteps[step]] * len(latent)
            velocity = window_velocity(self.dit, latent, times, prepared)
            latent = latent + (flow.sigmas[step + 1] - flow.sigmas[step]) * velocity.float()
        return latent

    def velocity(self, latent: Tensor, sigmas: list[float], prepared: PreparedWindow) -> Tensor:
        """Return the velocity at a noise level a sample."""
        times = [1000 * sigma for sigma in sigmas]
        return window_velocity(self.dit, latent, times, prepared).float()

    def prepare(self, batch: WindowBatch) -> PreparedWindow:
        """Embed the prompts, every text once, and encode all that does not depend on the noise."""
        known = {prompt: self._embedded(prompt) for prompt in sorted(set(batch.prompts))}
        conditions = WindowConditions(
            batch.ref_BC1HW,
            batch.motion_BCFHW,
            batch.features_BLEV,
            tuple(known[prompt] for prompt in batch.prompts),
            batch.first_frames,
            batch.distances,
        )
        return prepare_window(self.dit, conditions, ring_frames=self._ring_frames)

    def _embedded(self, prompt: str) -> Tensor:
        if not isinstance(self.text, TextEncoder):
            return self.text[prompt]
        ids = torch.tensor([self.text.token_ids(prompt)], device=self.dit.device)
        return self.text(ids)[0]  # type: ignore[no-any-return]


class FlowObjective(WindowModel):
    """Flow matching with the true past: the velocity from data to noise."""

    def forward(self, batch: WindowBatch) -> Tensor:
        """Return the weighted squared error of the velocity, at a noise level a sample."""
        sigmas = [self._noise_level(level) for level in batch.levels]
        sigma_B1 = batch.clean_BCFHW.new_tensor(sigmas)[:, None, None, None, None]
        latent = (1 - sigma_B1) * batch.clean_BCFHW + sigma_B1 * batch.noise_BCFHW
        velocity = self.velocity(latent, sigmas, self.prepare(batch))
        return _weighted(velocity - (batch.noise_BCFHW - batch.clean_BCFHW), batch)

    def _noise_level(self, level: float) -> float:
        """Return the sigma of a uniform number: mostly one of an inference step, else any."""
        steps, shift = self.flow.sigmas[:-1], self.dit.config.sample_shift
        if level < _AT_STEPS:
            level /= _AT_STEPS
            if level < _LAST_STEP or len(steps) == 1:
                return steps[-1]
            return steps[int((level - _LAST_STEP) / (1 - _LAST_STEP) * (len(steps) - 1))]
        uniform = (level - _AT_STEPS) / (1 - _AT_STEPS)
        return max(_LEAST_NOISE, shift * uniform / (1 + (shift - 1) * uniform))


class RolloutObjective(WindowModel):
    """At an inference step, from the model's own latents: what it takes for clean shall be clean."""

    def forward(self, batch: WindowBatch) -> Tensor:
        """Return the weighted squared error of the clean latents."""
        num_steps = max(1, len(self.flow.timesteps) - 1)
        step = int(batch.levels[0] * num_steps)
        prepared = self.prepare(batch)
        with torch.no_grad():
            latent = self.rollout(batch.noise_BCFHW, step, prepared)
        # Weights that autocast has cast without gradients must not be taken for those with.
        torch.clear_autocast_cache()
        sigma = self.flow.sigmas[step]
        velocity = self.velocity(latent, [sigma] * len(latent), prepared)
        return _weighted(latent - sigma * velocity - batch.clean_BCFHW, batch)


def _weighted(error_BCFHW: Tensor, batch: WindowBatch) -> Tensor:
    """Return the mean square of an error, with the weights of the pixels."""
    return (error_BCFHW.square() * batch.weights_B1HW[:, :, None]).mean()


def transformer_phase(
    model: FlowObjective | RolloutObjective,
    recipe: Recipe,
    cache: LatentCache,
    vae: VideoVAE,
    *,
    shape: WindowShape,
    seed: int,
) -> Phase:
    """Return one of the two phases of the transformer and the text encoder."""
    assert isinstance(model.text, TextEncoder)
    model.requires_grad_(True)
    model.dit.cond_encoder.weight.requires_grad_(False)  # there are no poses
    name = "transformer" if isinstance(model, FlowObjective) else "few-steps"
    device = model.dit.device
    batches = window_batches(
        cache, shape, size=recipe.batch_size, seed=seed + len(name), device=device
    )

    def sample(path: Path) -> None:
        clip = cache.clip(0)
        batch = collate([draw_window(clip, shape, dice(seed, "sample"))], device)
        prepared = model.prepare(batch)
        made = model.rollout(batch.noise_BCFHW, len(model.flow.timesteps), prepared)
        rows = [_decoded(vae, clip.still_CFHW.to(device), x[0]) for x in (batch.clean_BCFHW, made)]
        write_strip(path, rows)

    return Phase(name, recipe, model, batches, sample=sample)


def _decoded(vae: VideoVAE, still_CFHW: Tensor, latents_CFHW: Tensor) -> Tensor:
    """Return the video of latents that follow the portrait at rest."""
    video = vae.decode(torch.cat((still_CFHW, latents_CFHW), dim=1)[None])
    return video[:, :, 1 + 4 * (STILL_LATENTS - 1) :]
