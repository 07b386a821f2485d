"""Which options make a portrait livelier without training, and what they cost in lip sync.

    .venv/bin/python benchmarks/motion_options.py [--decode] [NAME ...]

Every trial is an option of `lipcast generate` or a change of the executor that did not become one. Cases: a
portrait, a held-out voice and a seed. The pictures are estimated from the latents by a linear map, which is
fitted to two decoded videos first: decoding takes 95 % of the time of a small video. `--decode` decodes all.
Printed: means over the cases; the last line of standard output is one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import lipcast
from lipcast.config.schedule import Tick
from lipcast.engine.backend import LocalBackend
from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.executor import LaneExecutor
from lipcast.engine.sampler import NoiseSource
from lipcast.engine.speech_features import LIVE_START, FeatureStream, StreamState
from lipcast.lab.drift import drift, portrait_likeness
from lipcast.lab.footage import Footage, survey
from lipcast.lab.motion import dynamic_degree
from lipcast.lab.mouth import mouth_of_drawing
from lipcast.lab.pictures import psnr
from lipcast.lab.sync import correlation, loudness
from lipcast.models.audio import AudioConditioning
from lipcast.models.dit import Lane
from lipcast.models.rope import RotaryTable
from lipcast.models.sink import PlacedSink
from lipcast.models.speech import SpeechEncoder
from lipcast.models.vae_blocks import DecoderState

ROOT = Path(__file__).parents[1]
CASES = ((4, "speech_d_female", 420), (3, "speech_b_male", 7))
FITTED = ((0, "speech_b_male", 420), (4, "speech_d_female", 420))
TRUTH_FRAMES = 84
SIDE = 4
"""Pixels of the estimate along each side of a latent."""


@dataclass(frozen=True)
class Trial:
    """Options, and what the executor does otherwise; the defaults change nothing."""

    options: Mapping[str, Any] = field(default_factory=dict)
    scale_from_silence: float = 1.0
    """As `audio_scale`, but away from the tokens of a sound of zeros in place of features of zeros."""
    audio_guidance: float = 1.0
    """At the first step, away from the velocity of zero speech features."""
    text_guidance: float = 1.0
    """The same with a text of zeros."""
    fresh_noise: float = 0.0
    """Share of the noise that is drawn anew after each step; 1 as in training."""
    history_noise: float = 0.0
    """Added to keys and values of the ring, in their standard deviations."""
    motion_noise: float = 0.0
    """Sigma to which the motion latents of the sink are noised."""
    noise_scale: float = 1.0
    shared_noise: float = 0.0
    """Correlation of the noise of the latent frames of a block with its first."""
    reference_keys: float = 1.0
    """Factor of the keys of the reference."""


TRIALS: Mapping[str, Trial] = {
    "off": Trial(),
    "audio_scale 1.2": Trial({"audio_scale": 1.2}),
    "audio_scale 1.4": Trial({"audio_scale": 1.4}),
    "audio_scale 1.8": Trial({"audio_scale": 1.8}),
    "scale 1.4 from silence": Trial(scale_from_silence=1.4),
    "audio guidance 2, first step": Trial(audio_guidance=2),
    "text guidance 2, first step": Trial(text_guidance=2),
    "cond_distance 4": Trial({"cond_distance": 4}),
    "cond_distance 30": Trial({"cond_distance": 30}),
    "cond_distance 60": Trial({"cond_distance": 60}),
    "history noise 0.1": Trial(history_noise=0.1),
    "motion noise 0.3": Trial(motion_noise=0.3),
    "fresh noise after each step": Trial(fresh_noise=1),
    "first noise x 1.05": Trial(noise_scale=1.05),
    "first noise correlated by 0.5": Trial(shared_noise=0.5),
    "keys of the reference x 0.9": Trial(reference_keys=0.9),
}


class TrialExecutor(LaneExecutor):
    """A `LaneExecutor` that does what a trial says."""

    def __init__(
        self, trial: Trial, silence_LCV: Tensor, model: Any, spec: Any, reference: ReferenceLatents,
        context: Tensor, **more: Any,
    ) -> None:  # fmt: skip
        self._trial, self._seed, self._silence_LCV = trial, spec.options.seed, silence_LCV
        self._drawn = torch.Generator().manual_seed(self._seed + 5)
        if trial.motion_noise:
            clean, sigma = reference.motion_CFHW, trial.motion_noise
            noise = torch.randn(clean.shape, generator=self._drawn)
            reference = replace(reference, motion_CFHW=clean + sigma * (noise - clean))
        super().__init__(model, spec, reference, context, **more)
        self._no_text = model.encode_text(torch.zeros_like(context))
        self._no_voice: AudioConditioning | None = None

    @property
    def _guidance(self) -> float:
        return self._trial.audio_guidance * self._trial.text_guidance

    def _encode_audio(self, features_LCV: Tensor) -> AudioConditioning:
        if self._no_voice is None:
            self._no_voice = super()._encode_audio(torch.zeros_like(features_LCV))
        if self._trial.scale_from_silence == 1:
            return super()._encode_audio(features_LCV)
        encode, scale = self._model.casual_audio_encoder, self._trial.scale_from_silence
        both = zip(encode(self._silence_LCV[None]), encode(features_LCV[None]), strict=True)
        overall, local = (none + scale * (given - none) for none, given in both)
        inject, layers = self._model.audio_injector, self._model.config.audio_inject_layers
        return AudioConditioning(
            tuple(inject.prepare(index, overall, local) for index in range(len(layers)))
        )

    def _noise_of(self, block: int) -> Tensor:
        noise_CFHW, shared = super()._noise_of(block), self._trial.shared_noise
        if shared:
            mixed = (1 - shared**2) ** 0.5 * noise_CFHW + shared * noise_CFHW[:, :1]
            noise_CFHW = mixed / mixed.std()
        return noise_CFHW * self._trial.noise_scale

    def _placed_sink(self, unit: Any) -> PlacedSink:
        placed, factor = super()._placed_sink(unit), self._trial.reference_keys
        if factor == 1:
            return placed
        table = RotaryTable(placed.table.cos_TP * factor, placed.table.sin_TP * factor)
        return PlacedSink(placed.sink, table, None)

    def lanes(self, tick: Tick) -> list[Lane]:
        """A guided unit is two lanes of one ring; what the first writes there, the second overwrites."""
        found = []
        for unit in tick:
            lane = self._lane(unit)
            if self._guidance != 1 and unit.step == 0:
                no_audio = {"audio": self._no_voice} if self._trial.audio_guidance != 1 else {}
                no_text = {"text": self._no_text} if self._trial.text_guidance != 1 else {}
                bare = replace(lane.conditions, **no_audio, **no_text)
                found.append(replace(lane, conditions=bare))
            found.append(lane)
        return found

    def finish(self, tick: Tick, velocities: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        given, combined = iter(velocities), []
        for unit in tick:
            velocity = next(given)
            if self._guidance != 1 and unit.step == 0:
                velocity = velocity + self._guidance * (next(given) - velocity)
            combined.append(self._renewed(unit, velocity) if self._trial.fresh_noise else velocity)
        if self._trial.history_noise:
            for unit in tick:
                self._disturb(unit)
        return super().finish(tick, combined)

    def _renewed(self, unit: Any, velocity: Tensor) -> Tensor:
        """The velocity that leads to the predicted latents under noise that is partly fresh."""
        sigma, following = self._spec.flow.sigmas[unit.step : unit.step + 2]
        if following == 0:
            return velocity
        state, share = self._in_flight[unit.block], self._trial.fresh_noise
        source = NoiseSource(self._seed + 7919 * (unit.step + 1), self._spec.geometry)
        fresh = source.frames(state.first_frame, state.latent_CFHW.shape[1])
        clean = state.latent_CFHW - sigma * velocity
        noise = (1 - share**2) ** 0.5 * (clean + velocity) + share * fresh
        moved = clean + following * (noise - clean)
        return (moved - state.latent_CFHW) / (following - sigma)

    def _disturb(self, unit: Any) -> None:
        frames = self._spec.geometry.latents_per_block
        for layer in range(len(self._model.layers)):
            ring = self.memory.rings[unit.step]
            for _, planes in ring.writable(layer, self._spec.first_frame(unit.block), frames):
                for plane in (*planes.keys, *planes.values):
                    noise = torch.randn(plane.shape, generator=self._drawn).to(plane.dtype)
                    plane.add_(self._trial.history_noise * plane.std() * noise)


class LinearDecoder(torch.nn.Module):
    """Latents to small pictures, each from its neighbours in the same latent frame and the one before."""

    def __init__(self, weight_PR: Tensor) -> None:
        super().__init__()
        self._weight_PR = weight_PR

    @classmethod
    def fit(cls, videos: Sequence[tuple[Tensor, Tensor]]) -> LinearDecoder:
        """Least squares over (latents [C, F, H, W], pictures [4 F, 3, SIDE H, SIDE W])."""
        rows, targets = [], []
        for latents, pictures in videos:
            frames, height, width = latents.shape[1:]
            shape = (frames, 4, 3, height, SIDE, width, SIDE)
            target = pictures.view(shape).permute(0, 3, 5, 1, 2, 4, 6)
            target = target.reshape(frames, height * width, -1)[1:].flatten(0, 1).double()
            given = cls._inputs(latents[:, :1], latents)[1:].flatten(0, 1).double()
            rows.append(given)
            targets.append(target)
        gram = sum((x.T @ x for x in rows), torch.zeros(1))
        against = sum((x.T @ y for x, y in zip(rows, targets, strict=True)), torch.zeros(1))
        return cls(torch.linalg.solve(gram + 1e-3 * torch.eye(len(gram)), against).float())

    @staticmethod
    def _inputs(before_C1HW: Tensor, latents_CFHW: Tensor) -> Tensor:
        frames = torch.cat((before_C1HW, latents_CFHW), dim=1).transpose(0, 1)
        pairs = functional.pad(
            torch.cat((frames[:-1], frames[1:]), dim=1), (1, 1, 1, 1), "replicate"
        )
        near = functional.unfold(pairs, 3)
        return torch.cat((near, torch.ones_like(near[:, :1])), dim=1).transpose(1, 2)

    def new_decoder_state(self) -> DecoderState:
        return DecoderState()

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None:
        state.caches["last"] = latent_BCTHW[0, :, -1:].float()

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor:
        latents = latent_BCTHW[0].float()
        frames, height, width = latents.shape[1:]
        rows = self._inputs(state.caches["last"], latents) @ self._weight_PR
        self.prime(latent_BCTHW, state)
        pixels = rows.view(frames, height, width, 4, 3, SIDE, SIDE).permute(4, 0, 3, 1, 5, 2, 6)
        video = pixels.reshape(1, 3, 4 * frames, SIDE * height, SIDE * width)
        return video.clamp(-1, 1)


@cache
def silence(encoder: SpeechEncoder) -> Tensor:
    """Features [layers, channels, frames] of a block in the middle of 5 s of silence."""
    stream = FeatureStream(encoder, video_frames_per_block=12, state=StreamState(LIVE_START))
    stream.push(np.zeros(5 * 16_000, np.float32))
    stream.finish()
    taken = [stream.take(block) for block in range(5)][-1]
    assert taken is not None
    return taken


def make(
    model: lipcast.Lipcast, case: tuple[int, str, int], trial: Trial,
    on_latent: Callable[[int, Tensor], None] | None = None,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """The frames of two clips, and processor seconds per block."""
    portrait, voice, seed = case
    executor = partial(TrialExecutor, trial, silence(model.bundle.speech))
    backend = LocalBackend(model.bundle, make_executor=executor)
    with lipcast.Lipcast(model.bundle, backend).stream(
        image=ROOT / "examples" / f"portrait_{portrait}.png",
        audio=ROOT / "examples" / f"{voice}.wav",
        prompt="a person is talking, calm",
        num_clip=2,
        seed=seed,
        **trial.options,
    ) as session:
        session.on_latent = on_latent
        began, frames = time.process_time(), [block.frames for block in session]
    return np.concatenate(frames), (time.process_time() - began) / len(frames)


def fitted(model: lipcast.Lipcast) -> LinearDecoder:
    """The linear map of two decoded videos."""
    videos = []
    for case in FITTED:
        latents: list[Tensor] = []
        frames, _ = make(model, case, Trial(), partial(_keep, latents))
        whole = torch.cat(latents, dim=1)
        pictures = torch.tensor(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        factor = pictures.shape[2] // (SIDE * whole.shape[2])
        videos.append((whole, functional.avg_pool2d(pictures, factor)))
    return LinearDecoder.fit(videos)


def _keep(latents: list[Tensor], block: int, latent_CFHW: Tensor) -> None:
    del block
    latents.append(latent_CFHW.float())


def measure(
    frames: np.ndarray, case: tuple[int, str, int], off: np.ndarray | None
) -> dict[str, float]:
    """Dynamic degree, that outside the mouth, lip sync, likeness, and distance from the video without."""
    portrait, voice, _ = case
    footage = Footage.of_frames(frames)
    seen, mouth = survey(footage), mouth_of_drawing(footage).opening
    assert mouth is not None
    height, width = seen.thumbs.shape[1:]
    rest = np.ones((height, width), bool)
    rest[height // 2 : int(0.8 * height), int(0.3 * width) : int(0.7 * width)] = False
    drive = np.load(ROOT / "tests" / "data" / f"{voice}_mouth_open.npy")[:TRUTH_FRAMES]
    loud = loudness(ROOT / "examples" / f"{voice}.wav", fps=25, num_frames=len(frames))
    likeness = portrait_likeness(ROOT / "examples" / f"portrait_{portrait}.png", size=seen.size)
    drifted = {metric.name: metric.value for metric in drift(seen, likeness, fps=25)}
    return {
        "dynamic degree": dynamic_degree(seen.thumbs),
        "outside the mouth": dynamic_degree(seen.thumbs[:, rest][:, None]),
        "lip sync, drive": correlation(mouth[:TRUTH_FRAMES], drive),
        "lip sync, loudness": correlation(mouth, loud),
        "likeness": float(drifted["likeness to the portrait"] or 0),
        "PSNR to off": 100.0 if off is None else mean(psnr(a, b) for a, b in zip(frames, off, strict=True)),
    }  # fmt: skip


def main(names: Sequence[str], *, decode: bool) -> None:
    model = lipcast.load("tiny")
    if not decode:
        model.bundle = replace(model.bundle, tiny_decoder=fitted(model))
    off: dict[Any, np.ndarray] = {}
    rows = {}
    for name in ["off", *(names or list(TRIALS)[1:])]:
        found, seconds = [], []
        for case in CASES:
            frames, spent = make(model, case, TRIALS[name])
            found.append(measure(frames, case, off.get(case)))
            seconds.append(spent)
            off.setdefault(case, frames)
        rows[name] = {key: mean(row[key] for row in found) for key in found[0]}
        rows[name]["s per block"] = mean(seconds)
        print(
            f"{name:<30}", *(f"{key} {value:.3f};" for key, value in rows[name].items()), flush=True
        )
    conditions = {"torch": torch.__version__, "decoded": decode, "threads": torch.get_num_threads()}
    print(json.dumps({**conditions, "cases": CASES, "rows": rows}))


if __name__ == "__main__":
    given = sys.argv[1:]
    main([name for name in given if name != "--decode"], decode="--decode" in given)
