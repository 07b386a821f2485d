"""What the planner is asked and what it answers: frozen data.

`PlanRequest` is the question: models, geometry, hardware, budget, constraints. `Plan` is the answer:
every placement, with predicted bytes by part and seconds per block.
Invariant: `Plan.vram_bytes <= budget.vram_bytes` and `Plan.ram_bytes <= budget.ram_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lipcast.config.generate_options import ScheduleName
from lipcast.config.geometry import Geometry
from lipcast.config.models import Models
from lipcast.config.precision import KVPrecision, Precision
from lipcast.config.schedule import lanes_of
from lipcast.planning.hardware import Hardware

Placement = Literal["resident", "pinned", "disk"]
"""On the GPU; streamed from pinned host memory; streamed from a mapped file."""
EncoderPlacement = Literal["device", "host", "disk"]


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory that one process may take, of its GPU and of the host."""

    vram_bytes: int
    ram_bytes: int


@dataclass(frozen=True, slots=True)
class PlanConstraints:
    """Choices that are fixed; None leaves one to the planner.

    `max_resident_layers=0` streams all weights, `max_resident_ring_layers=0` all of the KV rings.
    `tiles` is the grid (rows, columns) the decoder works in.
    """

    precision: Precision | None = None
    kv_precision: KVPrecision | None = None
    schedule: ScheduleName | None = None
    max_resident_layers: int | None = None
    max_resident_ring_layers: int | None = None
    stream_sink: bool | None = None
    tiles: tuple[int, int] | None = None
    text_encoder: EncoderPlacement | None = None
    speech_encoder: EncoderPlacement | None = None
    graphs: bool | None = None
    """Whether ticks may be recorded; they are not where something is streamed."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """One question to the planner."""

    geometry: Geometry
    hardware: Hardware
    budget: Budget
    models: Models = field(default_factory=Models)
    constraints: PlanConstraints = field(default_factory=PlanConstraints)
    sample_steps: int = 4
    fold_last_step: bool = True
    num_characters: int = 1
    """People in the picture with a voice each; every audio injector runs once for each of them."""
    pose: bool = False
    """A pose video is encoded while the video is made."""

    @property
    def num_evaluations(self) -> int:
        """Passes of the transformer per block, and KV rings: folding drops the last."""
        return max(1, self.sample_steps - self.fold_last_step)


@dataclass(frozen=True, slots=True)
class WorkShare:
    """The part of the work that one GPU does; the default is all of it.

    `num_steps`: denoising steps it owns (None: all). `ulysses`: GPUs that split tokens and heads of
    one step. `shards`: GPUs that keep a part of the weights each and gather them layer by layer.
    """

    num_steps: int | None = None
    ulysses: int = 1
    shards: int = 1
    decodes: bool = True


WHOLE = WorkShare()


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """Choices for all layers together. Which of them stay on the GPU is chosen separately."""

    precision: Precision
    kv_precision: KVPrecision
    schedule: ScheduleName
    sink_streamed: bool
    num_slots: int
    """Device buffers for streamed layers; 0 in a plan that streams none."""
    tiles: tuple[int, int]
    """Grid (rows, columns) of tiles that the decoder works in."""
    graphs: bool = False
    """Whether ticks are recorded as CUDA graphs, which needs everything on the GPU."""


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """Bytes under a name of `planning.items`."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class BlockTime:
    """Predicted seconds per block, in the steady state; the longest stream decides."""

    compute_s: float
    """Ticks of the transformer, with everything on the GPU."""
    decode_s: float
    copy_s: float
    """The link between host and GPU."""
    disk_s: float
    peer_s: float
    """Gathers of sharded weights from other GPUs, and exchanges of heads with them."""
    block_s: float

    @property
    def hidden_s(self) -> float:
        """Seconds that overlap saves."""
        return (
            self.compute_s + self.decode_s + self.copy_s + self.disk_s + self.peer_s - self.block_s
        )

    @property
    def bottleneck(self) -> str:
        streams = {
            "compute": self.compute_s + self.decode_s,
            "link": self.copy_s,
            "disk": self.disk_s,
            "peers": self.peer_s,
        }
        return max(streams, key=lambda name: streams[name])


@dataclass(frozen=True, slots=True)
class Plan:
    """All placements of one run on one GPU, with the predicted bytes and seconds."""

    request: PlanRequest
    share: WorkShare
    config: PlanConfig
    layers: tuple[Placement, ...]
    """Weights of each layer."""
    ring_layers: tuple[Placement, ...]
    """Keys and values of each layer, all rings."""
    prompt_weights: Literal["host", "disk"]
    """Weights that only a new prompt needs: kept in memory, or read again from the checkpoint."""
    text_encoder: EncoderPlacement
    speech_encoder: EncoderPlacement
    generate_parts: tuple[MemoryItem, ...]
    """GPU memory while blocks are made."""
    prepare_parts: tuple[MemoryItem, ...]
    """GPU memory while picture and prompt are encoded, before rings exist."""
    ram_parts: tuple[MemoryItem, ...]
    to_gpu_parts: tuple[MemoryItem, ...]
    """What crosses the link to the GPU for every block, in the steady state."""
    to_host_parts: tuple[MemoryItem, ...]
    """What crosses it to host memory, beside frames."""
    time: BlockTime

    @property
    def vram_bytes(self) -> int:
        """The predicted peak on the GPU."""
        return max(total(self.generate_parts), total(self.prepare_parts))

    @property
    def generate_bytes(self) -> int:
        """Predicted on the GPU while blocks are made."""
        return total(self.generate_parts)

    @property
    def ram_bytes(self) -> int:
        return total(self.ram_parts)

    @property
    def frames_per_s(self) -> float:
        return self.request.models.dit.video_frames_per_block / self.time.block_s

    @property
    def num_lanes(self) -> int:
        """Lanes in a tick: 1, or one per evaluated step."""
        steps = self.share.num_steps or self.request.num_evaluations
        return lanes_of(self.config.schedule, steps)

    @property
    def resident_layers(self) -> int:
        """Layers whose weights stay on the GPU."""
        return self.layers.count("resident")

    @property
    def resident_ring_layers(self) -> int:
        """Layers whose KV rings stay on the GPU."""
        return self.ring_layers.count("resident")

    @property
    def first_block_s(self) -> float:
        """Seconds from prepared conditions to the first frames; a wavefront fills up first."""
        return self.time.block_s * self.num_lanes


def total(parts: tuple[MemoryItem, ...]) -> int:
    return sum(part.num_bytes for part in parts)
