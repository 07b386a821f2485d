"""The front door: load a model, make videos with it. Here all parts are put together.

model = load("tiny")
model.generate(image="me.png", audio="hello.wav").save("out.mp4")     a whole video
for block in model.stream(image=…, audio=…): …                       frames as they are made
with model.session(image=…) as live: live.push(pcm); …               sound as it comes
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from lipcast.config.generate_options import OPTION_NAMES, GenerateOptions
from lipcast.config.video_spec import VideoSpec, video_spec
from lipcast.engine.decode import FrameDecoder
from lipcast.engine.executor import Executor, LaneExecutor
from lipcast.engine.frames import FrameBlock
from lipcast.engine.loading import LoadSettings, load_networks, read_device, read_precision
from lipcast.engine.memory_manager import MemoryManager
from lipcast.engine.session import Session
from lipcast.engine.session_builder import (
    Conditioning,
    SessionBuilder,
    encode_conditioning,
    last_latents,
)
from lipcast.engine.snapshot import WHOLE_VIDEO, BlockRange, SessionSnapshot
from lipcast.engine.sound_timeline import AudioSource, AudioTimeline
from lipcast.engine.speech_features import FeatureStream
from lipcast.env import launched
from lipcast.errors import UsageError
from lipcast.media.audio import PcmSource, open_audio
from lipcast.media.image import ImageSource, fit_portrait, load_portrait
from lipcast.media.video import VideoWriter
from lipcast.parallel.distributed_model import DistributedModel
from lipcast.planning.gpu_options import GPU_OPTION_NAMES, GpuOptions
from lipcast.planning.memory_options import make_memory_options
from lipcast.weights.bundle import ModelBundle, Network
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.lora import LoraSpec

ExecutorFactory = Callable[..., Executor]


def load(
    name_or_dir: str | Path = "tiny",
    *,
    device: str | None = None,
    precision: str | None = None,
    loras: Sequence[str | LoraSpec] = (),
    decoder: str | Path | None = None,
    expected: GenerateOptions | None = None,
    **machine: Any,
) -> Lipcast:
    """Load a model by name ("tiny") or from a checkpoint directory, published or converted.

    device: "cpu", "cuda", "cuda:1"; None takes the first GPU, else the CPU.
    precision: "fp32" computes everything exactly; "bf16" is faster, on a CPU too if it multiplies
    bfloat16 itself. None chooses bf16 wherever the hardware has it. "fp8", "int8" and "int4" compute
    as None does, and quantise the transformer's weights while they are read.
    loras: adapters as "path", "path:0.8" or `LoraSpec`, merged after the published one, which is
    merged where it lies beside the weights.
    decoder: a file of a TAEHV "taew2_1" decoder, which is faster and smaller than the autoencoder's and
    somewhat less exact.
    machine: the fields of `MemoryOptions` (vram="12GB", offload_model=True, ...). On a GPU, and on a
    CPU with `vram`, all memory is planned: weights and rings that do not fit stream from the host's.
    And those of `GpuOptions` (gpus=4, ...): several GPUs, or processes of a CPU, make a video together, in
    the layout that is fastest for the `expected` videos; `close` the model to end them.
    Raises MemoryBudgetError where nothing fits, CheckpointError for missing or broken files,
    UsageError for an unknown device, precision or option, RankError where a process fails.
    """
    chosen = read_device(device)
    dtype, asked = read_precision(precision, chosen)
    settings = LoadSettings(
        checkpoint_dir(name_or_dir),
        chosen,
        dtype,
        asked,
        loras=tuple(loras),
        decoder=None if decoder is None else Path(decoder),
        memory=make_memory_options({k: v for k, v in machine.items() if k not in GPU_OPTION_NAMES}),
    )
    gpus = GpuOptions(**{k: v for k, v in machine.items() if k in GPU_OPTION_NAMES})
    together = launched()
    if gpus.num_gpus > 1 or together is not None:
        here = replace(settings, device=torch.device("cpu"))
        speech_encoder: tuple[Network, ...] = ("speech",)
        bundle, _ = load_networks(here, networks=speech_encoder)
        distributed = DistributedModel(
            settings, gpus, expected or GenerateOptions(), launched=together
        )
        bundle.speech.to(distributed.speech_device)
        return Lipcast(bundle, distributed=distributed)
    bundle, memory_manager = load_networks(settings)
    return Lipcast(bundle, memory_manager=memory_manager)


@dataclass(frozen=True, slots=True)
class Video:
    """A finished video in memory. For long ones, write the blocks of `stream` with `save_blocks`."""

    blocks: tuple[FrameBlock, ...]
    report: dict[str, Any]

    @property
    def frames(self) -> NDArray[np.uint8]:
        """RGB [num_frames, height, width, 3]."""
        return np.concatenate([block.frames for block in self.blocks])

    @property
    def audio(self) -> NDArray[np.float32]:
        """[num_samples, channels] at `sample_rate`."""
        return np.concatenate([block.audio for block in self.blocks])

    @property
    def sample_rate(self) -> int:
        return self.blocks[0].sample_rate

    def save(self, path: str | Path) -> Path:
        """Write an MP4 (H.264 and AAC); raises OutputError where that fails."""
        for _ in save_blocks(self.blocks, path):
            pass
        return Path(path)


def save_blocks(
    blocks: Iterable[FrameBlock], path: str | Path, *, after: Path | None = None
) -> Generator[FrameBlock, None, None]:
    """Write blocks to a video file as they come, and pass them on; the file is playable throughout.

    What was written stays playable however the iteration ends. `after`: the file of the video that
    the blocks go on from. Raises OutputError.
    """
    writer: VideoWriter | None = None
    try:
        for block in blocks:
            writer = writer or open_writer(path, block, after=after)
            writer.write(block.frames, block.audio)
            yield block
    finally:
        if writer is not None:
            writer.close()


def open_writer(path: str | Path, block: FrameBlock, *, after: Path | None = None) -> VideoWriter:
    """A file for a video that begins with `block`; `after`: the file that it goes on from."""
    _, height, width, _ = block.frames.shape
    return VideoWriter(
        path,
        width=width,
        height=height,
        sample_rate=block.sample_rate,
        num_channels=block.audio.shape[1],
        after=after,
    )


class LiveSession:
    """A session whose sound is pushed while it runs."""

    def __init__(self, session: Session, source: PcmSource) -> None:
        self._session = session
        self._source = source

    def push(self, samples: NDArray[Any]) -> None:
        """Append float (-1..1) or int16 PCM, [n] or [n, channels], at the session's sample rate."""
        self._source.push(samples)

    def finish(self) -> None:
        """No more sound: what is left is padded to whole blocks and made."""
        self._source.finish()

    def ready(self) -> Iterator[FrameBlock]:
        """The blocks that the sound so far allows, without waiting for more."""
        return self._session.ready()

    def __iter__(self) -> Iterator[FrameBlock]:
        """Every block; waits for `push` from another thread, ends after `finish`."""
        return iter(self._session)

    def cancel(self) -> None:
        """End at once: whoever iterates gets CancelledError."""
        self._session.cancel()
        self._source.cancel()

    def close(self) -> None:
        """End and free; may be called again."""
        self.cancel()
        self._session.close()

    def report(self) -> dict[str, Any]:
        return self._session.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Lipcast:
    """A loaded model. Its weights are shared by all its sessions and never change."""

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        make_executor: ExecutorFactory = LaneExecutor,
        memory_manager: MemoryManager | None = None,
        distributed: DistributedModel | None = None,
    ) -> None:
        """`make_executor` (model, spec, anchor, context[, snapshot]) makes what runs the ticks.

        With a `memory_manager` the memory of videos is planned, and what runs them is its choice. With
        `distributed`, other processes make them, one at a time.
        """
        self.bundle = bundle
        self.memory_manager = memory_manager
        self.distributed = distributed
        self._make_executor = make_executor

    def generate(
        self,
        *,
        image: ImageSource,
        audio: str | Path,
        prompt: str | Path = "",
        on_block: Callable[[FrameBlock], None] | None = None,
        **options: Any,
    ) -> Video:
        """Make a whole video in memory. `options` are the fields of `GenerateOptions`."""
        with self.stream(image=image, audio=audio, prompt=prompt, **options) as session:
            blocks = []
            for block in session:
                blocks.append(block)
                if on_block is not None:
                    on_block(block)
            return Video(tuple(blocks), session.report())

    def stream(
        self,
        *,
        image: ImageSource,
        audio: str | Path,
        prompt: str | Path = "",
        snapshot: SessionSnapshot | None = None,
        end_block: int | None = None,
        **options: Any,
    ) -> Session:
        """Make a video block by block: an iterator of `FrameBlock`s, memory flat over any length.

        prompt: a text, or the `Path` of its embedding, which needs no text encoder.
        snapshot: `snapshot` of an earlier session of the same video, which this one goes on from, with the
        same picture, whole sound and options. end_block: the session ends before this block.
        """
        checked = make_options(options)
        portrait, source = load_portrait(image), open_audio(audio)
        return self._open(portrait, source, prompt, checked, BlockRange(snapshot, end_block))

    def session(
        self,
        *,
        image: ImageSource,
        prompt: str | Path = "",
        sample_rate: int = 16_000,
        **options: Any,
    ) -> LiveSession:
        """A live session: push PCM at `sample_rate`, iterate blocks."""
        source = PcmSource(sample_rate)
        session = self._open(load_portrait(image), source, prompt, make_options(options))
        return LiveSession(session, source)

    def close(self) -> None:
        """End the processes of a model on several GPUs; nothing to do otherwise."""
        if self.distributed is not None:
            self.distributed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def spec(self, options: GenerateOptions, *, height: int, width: int) -> VideoSpec:
        """Every size and order of a video of a portrait of `height` x `width` pixels."""
        if self.distributed is not None:
            options = self.distributed.adapted(options)
        return video_spec(
            options, self.bundle.dit.config, self.bundle.vae.config, height=height, width=width
        )

    def _open(
        self,
        portrait: Any,
        source: AudioSource,
        prompt: str | Path,
        options: GenerateOptions,
        block_range: BlockRange = WHOLE_VIDEO,
    ) -> Session:
        bundle = self.bundle
        spec = self.spec(options, height=portrait.height, width=portrait.width)
        conditioning = Conditioning(partial(fit_portrait, portrait), bundle.encode_prompt(prompt))
        if self.distributed is not None:
            return self._open_distributed(self.distributed, spec, conditioning, source, block_range)
        if self.memory_manager is not None:
            return self._open_planned(self.memory_manager, spec, conditioning, source, block_range)
        snapshot = block_range.snapshot
        anchor = encode_conditioning(bundle, conditioning, spec)
        return Session(
            spec,
            self._make_executor(
                bundle.dit,
                spec,
                anchor,
                conditioning.context_TC,
                **({"snapshot": snapshot} if snapshot else {}),
            ),
            FrameDecoder(
                bundle.decoder, anchor, resume_CFHW=last_latents(snapshot) if snapshot else None
            ),
            self.timeline(source, spec, block_range),
            device=bundle.device,
            snapshot=snapshot,
        )

    def _open_planned(
        self,
        memory_manager: MemoryManager,
        spec: VideoSpec,
        conditioning: Conditioning,
        source: AudioSource,
        block_range: BlockRange,
    ) -> Session:
        plan = memory_manager.plan(spec.geometry, spec.options)
        spec = replace(spec, max_lanes=plan.config.num_lanes)
        video = SessionBuilder(self.bundle, conditioning, spec, plan, memory_manager)
        parts = video.begin(block_range.snapshot)
        return Session(
            parts.spec,
            parts.executor,
            parts.decoder,
            self.timeline(source, parts.spec, block_range),
            device=self.bundle.device,
            snapshot=parts.snapshot,
            recovery=video.ladder,
            describe=lambda: {"memory": memory_manager.document(video.ladder)},
        )

    def _open_distributed(
        self,
        distributed: DistributedModel,
        spec: VideoSpec,
        conditioning: Conditioning,
        source: AudioSource,
        block_range: BlockRange,
    ) -> Session:
        opened = distributed.open(spec, conditioning, block_range.snapshot)
        return Session(
            opened.spec,
            opened.executor,
            opened.decoder,
            self.timeline(source, opened.spec, block_range),
            device=self.bundle.device,
            snapshot=block_range.snapshot,
            describe=opened.describe,
        )

    def timeline(
        self, source: AudioSource, spec: VideoSpec, block_range: BlockRange = WHOLE_VIDEO
    ) -> AudioTimeline:
        """The sound of a stretch of a video, cut along its blocks."""
        end = block_range.end_block and block_range.end_block * spec.video_frames_per_block
        features = FeatureStream(
            self.bundle.speech,
            video_frames_per_block=spec.video_frames_per_block,
            num_samples=getattr(source, "num_speech_samples", None),
            mean=getattr(source, "speech_mean", None),
            std=getattr(source, "speech_std", None),
            first_block=block_range.first_block,
        )
        return AudioTimeline(
            source,
            features,
            video_frames_per_block=spec.video_frames_per_block,
            max_frames=min((n for n in (spec.max_frames, end) if n is not None), default=None),
            first_block=block_range.first_block,
        )


def make_options(options: dict[str, Any]) -> GenerateOptions:
    """Checked options from keyword arguments; raises UsageError for an unknown name."""
    for name in options:
        if name not in OPTION_NAMES:
            raise UsageError(
                f"{name}: expected an option ({', '.join(OPTION_NAMES)}), got this one"
            )
    return GenerateOptions(**options)


def describe(options: GenerateOptions) -> dict[str, Any]:
    """Options as plain data, for reports."""
    return asdict(options)
