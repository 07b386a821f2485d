"""Train every network of a model, one phase after the other, and export it.

Input: a preset, a source of clips, a folder. The folder keeps the state of every phase, pictures on the way
and the finished model; the same call goes on from there, and does nothing when everything is done. Needs
torch, numpy, safetensors and transformers only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lipcast.weights.disk import make_directory, write_text
from lipcast_train.data.cache import LatentCache
from lipcast_train.data.clips import ClipSource
from lipcast_train.data.pool import ClipPool
from lipcast_train.data.windows import WindowShape
from lipcast_train.export import HASHES, export
from lipcast_train.networks.build import build_networks, take_autoencoder
from lipcast_train.phases.autoencoder import (
    FootageBatches,
    autoencoder_phase,
    decoder_phase,
    latent_statistics_of,
)
from lipcast_train.phases.speech import speech_phase
from lipcast_train.phases.transformer import FlowObjective, RolloutObjective, transformer_phase
from lipcast_train.presets import Preset
from lipcast_train.training.devices import Devices
from lipcast_train.training.loop import LoopSettings, Phase, run_phase
from lipcast_train.training.state import Progress

MODEL_FOLDER = "model"
_STATISTICS = "latents.json"
_EXPORTED = "exported.txt"
"""Says of which training the exported model came."""
_STATISTICS_BATCHES = 8


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """`phases`: how far each has come. `is_new`: whether this call exported the model."""

    model: Path
    phases: dict[str, Progress]
    is_finished: bool
    is_new: bool = False


def train_all(
    preset: Preset,
    source: ClipSource,
    devices: Devices,
    settings: LoopSettings,
    *,
    data_identity: str = "",
) -> TrainingResult:
    """Run every phase from its last state, then export the model.

    `data_identity` tells what the source reads from other data; states of other data are not continued.

    Returns early, with the state on the disk, when the deadline of `settings` has passed.
    """
    make_directory(settings.folder)
    training = _Training(preset, source, devices, settings, data_identity)
    return training.run()


class _Training:
    """The phases of one model, in order."""

    def __init__(
        self,
        preset: Preset,
        source: ClipSource,
        devices: Devices,
        settings: LoopSettings,
        data_identity: str,
    ) -> None:
        self._preset, self._devices = preset, devices
        self._settings = replace(settings, sample_every=preset.sample_every)
        self._pool = ClipPool(source)
        self._networks = build_networks(preset.sizes, seed=preset.seed)
        if preset.autoencoder_of:
            take_autoencoder(self._networks.vae, preset.autoencoder_of)
        self._networks.to(devices.device)
        self._phases: dict[str, Progress] = {}
        key = repr((preset, len(source), data_identity))
        self._identity = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._model = settings.folder / MODEL_FOLDER

    def run(self) -> TrainingResult:
        preset, networks, device = self._preset, self._networks, self._devices.device
        hearing = speech_phase(
            networks.speech, self._pool, preset.speech, seed=preset.seed, device=device
        )
        is_finished = self._train(hearing) and self._train_pictures() and self._train_transformer()
        is_new = is_finished and self._devices.is_main and self._export()
        return TrainingResult(self._model, self._phases, is_finished, is_new)

    def _export(self) -> bool:
        """Write the model, unless the one that is there came of this very training."""
        stamp = self._settings.folder / _EXPORTED
        made_of = hashlib.sha256(repr((self._identity, self._phases)).encode()).hexdigest()
        hashes = self._model / HASHES
        if hashes.exists() and stamp.exists() and stamp.read_text("utf-8") == made_of:
            return False
        facts = [
            f"{name}: {done.step} steps, loss {done.losses[-1]:.4f}"
            for name, done in self._phases.items()
        ]
        if self._preset.autoencoder_of:
            facts.insert(0, f"the autoencoder began as that of `{self._preset.autoencoder_of}`")
        export(self._model, self._networks, title=f"lipcast {self._preset.name}", facts=facts)
        write_text(stamp, made_of)
        return True

    def _train(self, phase: Phase) -> bool:
        """Run a phase; returns whether it is finished."""
        phase = replace(phase, identity=self._identity)
        progress = run_phase(phase, self._devices, self._settings)
        self._phases[phase.name] = progress
        phase.objective.requires_grad_(False)
        return progress.step >= phase.recipe.num_steps

    def _train_pictures(self) -> bool:
        """Train the autoencoder, then the fast decoder of its latents."""
        vae, preset = self._networks.vae, self._preset
        batches = self._footage(preset.autoencoder.batch_size)
        if not self._train(autoencoder_phase(vae, preset.autoencoder, batches)):
            return False
        self._set_statistics()
        batches = self._footage(preset.decoder.batch_size)
        return self._train(decoder_phase(self._networks.decoder, vae, preset.decoder, batches))

    def _train_transformer(self) -> bool:
        preset, networks = self._preset, self._networks
        cache = LatentCache(
            self._settings.folder / "latents", self._pool, networks.vae, networks.speech,
            identity=self._identity, device=self._devices.device, max_bytes=preset.cache_bytes,
        )  # fmt: skip
        config = networks.dit.config
        shape = WindowShape(preset.window_frames, config.latents_per_block, config.motion_latents)
        for objective, recipe in (
            (FlowObjective, preset.transformer), (RolloutObjective, preset.few_steps),
        ):  # fmt: skip
            model = objective(networks.dit, networks.text, ring_frames=preset.window_frames)
            phase = transformer_phase(
                model, recipe, cache, networks.vae, shape=shape, seed=preset.seed
            )
            if not self._train(phase):
                return False
        return True

    def _footage(self, size: int) -> FootageBatches:
        preset = self._preset
        return FootageBatches(
            self._pool, preset.footage_lengths, size=size, seed=preset.seed,
            device=self._devices.device,
        )  # fmt: skip

    def _set_statistics(self) -> None:
        """Measure the latents once; every later run takes the same numbers."""
        path = self._settings.folder / _STATISTICS
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if known.get("identity") != self._identity:
            batches = self._footage(self._preset.autoencoder.batch_size)
            mean_C, std_C = latent_statistics_of(
                self._networks.vae, batches, num_batches=_STATISTICS_BATCHES
            )
            known = {"identity": self._identity, "mean": mean_C.tolist(), "std": std_C.tolist()}
            if self._devices.is_main:
                write_text(path, json.dumps(known))
        self._networks.set_statistics(torch.tensor(known["mean"]), torch.tensor(known["std"]))
