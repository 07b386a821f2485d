"""The public API: load a model, generate videos with it.

model = load("tiny")
model.generate(image="me.png", audio="hello.wav").save("out.mp4")     a whole video
for block in model.stream(image=…, audio=…): …                       frames as they are made
with model.session(image=…) as pushed: pushed.push(pcm); …           sound in pieces, blocks on demand
with model.live(image=…) as live: live.push_audio(pcm, …); …         sound as it is spoken
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from lipcast.config.closing import Closing
from lipcast.config.direction import UNDIRECTED, Direction
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import GpuOptions
from lipcast.config.keywords import (
    GenerateKeywords,
    MachineKeywords,
    generate_options,
    machine_options,
    make_options,
)
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.video_spec import VideoSpec, video_spec, with_prompt_blocks
from lipcast.engine.backend import Backend, LocalBackend
from lipcast.engine.engine import Engine
from lipcast.engine.frames import FrameBlock
from lipcast.engine.live import LiveSession
from lipcast.engine.live_runner import LiveRunner
from lipcast.engine.live_sounds import LiveSounds
from lipcast.engine.live_timeline import LiveTimeline
from lipcast.engine.live_types import AVFrame, LiveLimits
from lipcast.engine.loading import LoadSettings, load_networks, read_device, read_precision
from lipcast.engine.push_session import PushSession
from lipcast.engine.session import Session
from lipcast.engine.session_builder import Conditioning
from lipcast.engine.snapshot import WHOLE_VIDEO, BlockRange, SessionSnapshot
from lipcast.engine.sound_timeline import AudioSource, Timeline, source_timeline
from lipcast.env import launched, logger
from lipcast.media.audio import AudioFile, PcmSource
from lipcast.media.characters import Cast, Character, Region, find_regions, open_sound
from lipcast.media.clip import open_motion, open_pose
from lipcast.media.image import ImageSource, fit_portrait, load_portrait
from lipcast.media.video import VideoWriter
from lipcast.media.voices import mixed
from lipcast.parallel.distributed_model import DistributedModel
from lipcast.speech.spoken import speak
from lipcast.weights.bundle import ModelBundle, NetworkName
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.lora import LoraSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "AVFrame", "Character", "Direction", "FrameBlock", "GenerateOptions", "GpuOptions", "Lipcast",
    "LiveLimits",
    "LiveSession", "MemoryOptions", "PushSession", "Video", "load", "make_options", "open_writer",
    "save_blocks", "speak",
]  # fmt: skip


_LOG = logger("api")


def load(
    name_or_dir: str | Path = "tiny",
    *,
    device: str | None = None,
    precision: str | None = None,
    loras: Sequence[str | LoraSpec] = (),
    decoder: str | Path | None = None,
    expected: GenerateOptions | None = None,
    memory_options: MemoryOptions | None = None,
    gpu_options: GpuOptions | None = None,
    **machine: Unpack[MachineKeywords],
) -> Lipcast:
    """Load a model by name ("tiny") or from a checkpoint directory, published or converted.

    device: "cpu", "cuda", "cuda:1"; None takes the first GPU, else the CPU.
    precision: "fp32" computes everything exactly; "bf16" is faster, on a CPU too if it multiplies
    bfloat16 itself. None chooses bf16 wherever the hardware has it. "fp8", "int8", "int4" and "nvfp4" compute
    as None does, and quantise the transformer's weights while they are read.
    loras: adapters as "path", "path:0.8" or `LoraSpec`, merged after the published one, which is
    merged where it lies beside the weights.
    decoder: a file of a TAEHV "taew2_1" decoder, which is faster and smaller than the autoencoder's and
    somewhat less exact.
    memory_options: budgets and offloading. On a GPU, and on a CPU with a budget, all memory is planned:
    weights and KV caches that do not fit stream from the host's.
    gpu_options: several GPUs, or processes of a CPU, make a video together, in the layout that is fastest
    for the `expected` videos; `close` the model to end them. Also the kernels and attention, and whether a
    pass of the transformer is launched at once (cuda_graphs).
    machine: the fields of `MemoryOptions` and `GpuOptions` as keywords (vram="12GB", gpus=4, ...).
    Raises MemoryBudgetError where nothing fits, CheckpointError for missing or broken files,
    UsageError for an unknown device, precision or option, RankError where a process fails.
    """
    memory, gpus = machine_options(memory_options, gpu_options, machine)
    chosen = read_device(device)
    dtype, asked = read_precision(precision, chosen)
    settings = LoadSettings(
        checkpoint_dir(name_or_dir),
        chosen,
        dtype,
        asked,
        loras=tuple(loras),
        decoder=None if decoder is None else Path(decoder),
        memory=memory,
        kernels=gpus.kernels,
        attention=gpus.attention,
        graphs=gpus.cuda_graphs,
    )
    together = launched()
    if gpus.num_gpus > 1 or together is not None:
        here = replace(settings, device=torch.device("cpu"))
        speech_only: tuple[NetworkName, ...] = ("speech",)
        bundle, _ = load_networks(here, networks=speech_only)
        ranks = DistributedModel(settings, gpus, expected or GenerateOptions(), launched=together)
        bundle.speech.to(ranks.speech_device)
        return Lipcast(bundle, ranks)
    bundle, manager = load_networks(settings)
    return Lipcast(bundle, LocalBackend(bundle, manager))


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

    def save(self, path: str | Path, *, marked: bool = True) -> Path:
        """Write an MP4 (H.264 and AAC); raises OutputError where that fails.

        `marked`: note in its metadata that it is synthetic.
        """
        for _ in save_blocks(self.blocks, path, marked=marked):
            pass
        return Path(path)


def save_blocks(
    blocks: Iterable[FrameBlock],
    path: str | Path,
    *,
    after: Path | None = None,
    marked: bool = True,
) -> Generator[FrameBlock, None, None]:
    """Write blocks to a video file as they come, and pass them on; the file is playable throughout.

    What was written stays playable however the iteration ends. `after`: the file of the video that
    the blocks go on from. `marked`: note in the metadata that the video is synthetic. Raises OutputError.
    """
    writer: VideoWriter | None = None
    try:
        for block in blocks:
            writer = writer or open_writer(path, block, after=after, marked=marked)
            writer.write(block.frames, block.audio)
            yield block
    finally:
        if writer is not None:
            writer.close()


def open_writer(
    path: str | Path, block: FrameBlock, *, after: Path | None = None, marked: bool = True
) -> VideoWriter:
    """Return a file for a video that begins with `block`; `after`: the file that it goes on from."""
    _, height, width, _ = block.frames.shape
    return VideoWriter(
        path,
        width=width,
        height=height,
        sample_rate=block.sample_rate,
        num_channels=block.audio.shape[1],
        after=after,
        marked=marked,
    )


class Lipcast(Closing):
    """A loaded model. Its weights are shared by all its sessions and never change."""

    def __init__(self, bundle: ModelBundle, backend: Backend | None = None) -> None:
        """`backend` opens the sessions; by default this process does, with all of the model on its device."""
        self.bundle = bundle
        self.backend: Backend = LocalBackend(bundle) if backend is None else backend
        self._engine = Engine(bundle.dit)
        self._live_runner = LiveRunner(self._engine.tick)
        self._live_sounds = LiveSounds(bundle, mixed)

    def generate(
        self,
        *,
        image: ImageSource,
        audio: str | Path | AudioFile | None = None,
        characters: Sequence[Character] = (),
        prompt: str | Path = "",
        direction: Direction = UNDIRECTED,
        on_block: Callable[[FrameBlock], None] | None = None,
        options: GenerateOptions | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Video:
        """Make a whole video in memory. `keywords` are the fields of `GenerateOptions`."""
        with self.stream(
            image=image,
            audio=audio,
            characters=characters,
            prompt=prompt,
            direction=direction,
            options=options,
            **keywords,
        ) as session:
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
        audio: str | Path | AudioFile | None = None,
        characters: Sequence[Character] = (),
        prompt: str | Path = "",
        direction: Direction = UNDIRECTED,
        snapshot: SessionSnapshot | None = None,
        end_block: int | None = None,
        options: GenerateOptions | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Session:
        """Make a video block by block: an iterator of `FrameBlock`s, memory flat over any length.

        audio: a file, or what `open_audio` has made of one; in place of it, `characters`: where each of
        several is in the picture, and what each says. prompt: a text, or the `Path` of its
        embedding, which needs no text encoder. direction: prompts over time, a pose, a beginning.
        snapshot: `snapshot` of an earlier session of the same video, which this one goes on from, with the
        same picture, whole sound and options. end_block: the session ends before this block.
        """
        checked = generate_options(options, keywords)
        checked = replace(checked, pose=direction.pose_video is not None)
        portrait = load_portrait(image, crop=checked.crop)
        sound = open_sound(audio, characters, portrait, checked)
        block_range = BlockRange(snapshot, end_block)
        session = self._open(
            portrait, sound, prompt, checked, direction=direction, block_range=block_range
        )
        _warn_of_late_prompts(session)
        return session

    def session(
        self,
        *,
        image: ImageSource,
        prompt: str | Path = "",
        sample_rate: int = 16_000,
        options: GenerateOptions | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> PushSession:
        """Open a session for pushed sound: push PCM at `sample_rate`, iterate blocks."""
        source = PcmSource(sample_rate)
        checked = generate_options(options, keywords)
        session = self._open(load_portrait(image, crop=checked.crop), source, prompt, checked)
        return PushSession(session, source)

    def live(
        self,
        *,
        image: ImageSource,
        characters: Sequence[Region] = (),
        prompt: str | Path = "",
        sample_rate: int = 48_000,
        idle: bool = True,
        limits: LiveLimits | None = None,
        options: GenerateOptions | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> LiveSession:
        """Open a live session: sound is pushed as it is spoken, pictures with their sound come out.

        `sample_rate` of the sound that comes out, in Hz; `idle`: show an idle face where nothing is said.
        `characters`: regions of several people, each of whom has sound of its own (`push_audio`).
        All live sessions of a model are advanced by one thread, in common passes of the transformer.
        """
        bounds = limits or LiveLimits()
        checked = generate_options(options, keywords)
        portrait = load_portrait(image, crop=checked.crop)
        cast = Cast(find_regions(characters, portrait, checked)) if characters else None
        spec = self.spec(checked, height=portrait.height, width=portrait.width)
        timeline = self._live_sounds.timeline(
            partial(PcmSource, mux_rate=sample_rate),
            video_frames_per_block=spec.video_frames_per_block,
            sample_rate=sample_rate,
            max_pending_s=bounds.max_pending_s,
            num_characters=max(1, len(characters)),
        )
        session = self._open(portrait, timeline, prompt, checked, cast=cast)
        encode = self.bundle.encode_prompt
        live = LiveSession(session, timeline, encode_prompt=encode, limits=bounds, idle=idle)
        self._live_runner.add(live)
        return live

    def tick(self, sessions: Iterable[PushSession | Session]) -> bool:
        """Advance several sessions of this model by one tick, in one pass of the transformer.

        Their finished blocks are taken with `take`. Returns False where no session had anything to do: wait
        for sound. A session that fails is ended, and the others go on; several devices take one at a time.
        """
        opened = (each if isinstance(each, Session) else each.inner for each in sessions)
        return self._engine.tick(tuple(opened))

    def close(self) -> None:
        """End the processes of a model on several GPUs; nothing to do otherwise."""
        self.backend.close()

    def spec(self, options: GenerateOptions, *, height: int, width: int) -> VideoSpec:
        """Return every size and order of a video of a portrait of `height` x `width` pixels."""
        adapted = self.backend.adapted(options)
        dit, vae = self.bundle.dit.config, self.bundle.vae.config
        return video_spec(adapted, dit, vae, height=height, width=width)

    def timeline(
        self, source: AudioSource | Cast, spec: VideoSpec, block_range: BlockRange = WHOLE_VIDEO
    ) -> Timeline:
        """Return the sound of a range of blocks, cut along them."""
        sources = source.voices if isinstance(source, Cast) else (source,)
        return source_timeline(self.bundle.speech, sources, spec=spec, part=block_range, mix=mixed)

    def _open(
        self,
        portrait: Image,
        source: AudioSource | Cast | LiveTimeline,
        prompt: str | Path,
        options: GenerateOptions,
        *,
        direction: Direction = UNDIRECTED,
        block_range: BlockRange = WHOLE_VIDEO,
        cast: Cast | None = None,
    ) -> Session:
        spec = self.spec(options, height=portrait.height, width=portrait.width)
        prompts = direction.prompts_by_block(prompt, spec.video_frames_per_block)
        spec, num_motion = with_prompt_blocks(spec, prompts), self.bundle.dit.config.motion_frames
        size = {"height": spec.geometry.height, "width": spec.geometry.width}
        pose, motion = open_pose(direction), open_motion(direction, num_motion, **size)
        contexts = self.bundle.encode_prompts(prompts)  # last: it costs a pass of the text encoder
        cast = source if isinstance(source, Cast) else cast
        fit, first_TC = partial(fit_portrait, portrait), contexts.pop(0)
        conditioning = Conditioning(fit, first_TC, contexts, pose, motion)
        if cast is not None:
            conditioning = replace(conditioning, fit_masks=cast.fit, num_characters=cast.size)
        parts = self.backend.open(spec, conditioning, block_range.snapshot)
        try:
            timeline: Timeline = (
                source
                if isinstance(source, LiveTimeline)
                else self.timeline(source, spec, block_range)
            )
        except BaseException:
            parts.release()
            raise
        return Session(parts, timeline, device=self.bundle.device)


def _warn_of_late_prompts(session: Session) -> None:
    """Log the prompts that begin after the end of the sound."""
    end, blocks = session.num_blocks, session.spec.order.prompt_blocks
    if late := [block for block in blocks if end and block >= end]:
        _LOG.warning("%d prompts begin at the end of the video or after it", len(late))
