"""Bytes of one `PlanConfig`, as a search needs them.

Input: a PlanRequest, a WorkShare, a PlanConfig. Output: `Workload`: bytes as a function of how many layers
and ring layers stay on the GPU. Invariant: resident bytes grow with the number of resident layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate

from lipcast.config.geometry import Geometry
from lipcast.config.models import DiTConfig
from lipcast.config.precision import PlainPrecision, Precision, plain_precision
from lipcast.config.schedule import lanes_of
from lipcast.config.tiles import tile_length
from lipcast.planning import costs, graphs, items, sizes
from lipcast.planning.hardware import CONTEXT_BYTES, FRAGMENTATION_BYTES, WORKSPACE_BYTES, Hardware
from lipcast.planning.plan import MemoryItem, PlanConfig, PlanRequest, WorkShare, total
from lipcast.planning.tensors import WeightUse

HOST_RESERVE_BYTES = 2 * 2**30
"""Python, torch and its CUDA libraries, frames and sound in transit."""
DISK_STAGING_LAYERS = 2
"""Pinned buffers that layers from disk pass through."""
RING_SLOTS = 2
_GOLDEN = 0.6180339887498949


@cache
def residency_order(num_layers: int) -> tuple[int, ...]:
    """Return the order in which layers are placed on the GPU.

    Any first n of it are spread evenly, so that the copies of the others hide behind their computation.
    """
    return tuple(sorted(range(num_layers), key=lambda layer: (layer * _GOLDEN) % 1.0))


@dataclass(frozen=True)
class Workload:
    """Bytes of one config."""

    request: PlanRequest
    share: WorkShare
    config: PlanConfig

    @property
    def dit(self) -> DiTConfig:
        return self.request.models.dit

    @cached_property
    def injecting_dit(self) -> DiTConfig:
        """The transformer with as many audio injectors as ticks run: those of all characters."""
        layers = self.dit.audio_inject_layers
        return replace(self.dit, audio_inject_layers=layers * self.request.num_characters)

    @property
    def geometry(self) -> Geometry:
        return self.request.geometry

    @cached_property
    def num_layers(self) -> int:
        return self.dit.num_layers

    @cached_property
    def num_steps(self) -> int:
        """Rings on this GPU, and evaluations of each block."""
        return self.share.num_steps or self.request.num_evaluations

    @cached_property
    def num_lanes(self) -> int:
        return lanes_of(self.config.schedule, self.num_steps)

    @cached_property
    def ticks_per_block(self) -> int:
        return self.num_steps // self.num_lanes

    # Weights

    @cached_property
    def ticks_total(self) -> tuple[int, ...]:
        """Bytes that every tick needs, of the first n layers in residency order."""
        return self._total("tick")

    @cached_property
    def audio_total(self) -> tuple[int, ...]:
        """Bytes that every block needs once, for its audio."""
        return self._total("audio")

    @cached_property
    def layers_total(self) -> tuple[int, ...]:
        """Bytes of both; a layer on the GPU has both there."""
        return tuple(t + a for t, a in zip(self.ticks_total, self.audio_total, strict=True))

    @cached_property
    def prompt_bytes(self) -> int:
        """Bytes that are needed once per prompt; they are in host memory or on disk."""
        return self._total("prompt")[-1]

    def _total(self, use: WeightUse) -> tuple[int, ...]:
        stored = sizes.layer_bytes(self.dit, self.config.precision, use)
        return (0, *accumulate(stored[layer] for layer in residency_order(self.num_layers)))

    @cached_property
    def widest_layer_bytes(self) -> int:
        """The largest buffer that passes through a slot."""
        uses: tuple[WeightUse, ...] = ("tick", "audio")
        return max(max(sizes.layer_bytes(self.dit, self.config.precision, use)) for use in uses)

    @cached_property
    def staging_bytes(self) -> int:
        """Buffers that layers from disk pass through, if any are there."""
        return DISK_STAGING_LAYERS * self.widest_layer_bytes

    def weights_bytes(self, resident: int) -> int:
        """Return the bytes of the resident layers, and of the slots that the others pass through."""
        if self.share.shards > 1:
            kept = 0 if self.shards_on_host else self.shard_bytes
            return kept + 2 * self.widest_layer_bytes
        return self.layers_total[resident] + self.slot_bytes(resident)

    @property
    def shard_bytes(self) -> int:
        """What one GPU keeps of all layers."""
        return -(-self.layers_total[-1] // self.share.shards)

    @property
    def shards_on_host(self) -> bool:
        """Whether the shards are kept in host memory, and pass through the GPU."""
        return self.share.shards > 1 and self.request.constraints.max_resident_layers == 0

    def slot_bytes(self, resident: int) -> int:
        """Return the bytes of the slots for streamed layers, if any are streamed."""
        streams = resident < self.num_layers and self.share.shards == 1
        return self.config.num_slots * self.widest_layer_bytes if streams else 0

    # Keys and values

    @cached_property
    def ring_layer_bytes(self) -> int:
        """One layer of one ring, this GPU's heads."""
        return self._split(
            sizes.ring_layer_bytes(self.dit, self.geometry, self.config.kv_precision)
        )

    @cached_property
    def rings_layer_bytes(self) -> int:
        """One layer of all rings."""
        return self.num_steps * self.ring_layer_bytes

    def rings_bytes(self, resident: int) -> int:
        """Return the bytes of the resident ring layers, and of the slots that the others pass through."""
        slots = RING_SLOTS * self.num_lanes if resident < self.num_layers else 0
        return resident * self.rings_layer_bytes + slots * self.ring_layer_bytes

    def pinned_rings_bytes(self, resident: int) -> int:
        """Return the bytes of the ring layers that are in host memory."""
        return (self.num_layers - resident) * self.rings_layer_bytes

    def read_rings_bytes(self, resident: int) -> int:
        """Return what a block brings to the GPU of the pinned ring layers: all but what it overwrites."""
        kept = max(0, self.geometry.window - self.geometry.latents_per_block)
        return self.pinned_rings_bytes(resident) * kept // self.geometry.window

    def written_rings_bytes(self, resident: int) -> int:
        """Return what a block brings back to host memory: its own frames."""
        return self.pinned_rings_bytes(resident) - self.read_rings_bytes(resident)

    @cached_property
    def sink_layer_bytes(self) -> int:
        """One layer of the sink."""
        return self._split(sizes.sink_layer_bytes(self.dit, self.geometry, self.plain))

    @cached_property
    def sink_bytes(self) -> int:
        """On the GPU: the slots that a streamed sink passes through, or all of it and its placed keys.

        Every block in flight has its own placed reference keys; those of a streamed sink are rotated where
        they are read.
        """
        if self.config.sink_streamed:
            return RING_SLOTS * self.sink_layer_bytes
        placed = self._split(sizes.placed_layer_bytes(self.dit, self.geometry, self.plain))
        return self.num_layers * (self.sink_layer_bytes + self.num_lanes * placed)

    @property
    def plain(self) -> PlainPrecision:
        """Precision of everything that is not quantised."""
        return plain_precision(self.config.precision)

    def _split(self, num_bytes: int) -> int:
        """Return what the GPU with the most heads holds of `num_bytes` for all heads."""
        return -(-num_bytes * self._most_heads // self.dit.num_heads)

    @property
    def split(self) -> float:
        """How many times less than one GPU the fullest of those that split heads holds and computes."""
        return self.dit.num_heads / self._most_heads

    @property
    def _most_heads(self) -> int:
        return -(-self.dit.num_heads // self.share.ulysses)

    # Decoder

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Latent height and width of one tile."""
        return tile_size(self.request, self.config.tiles)

    @property
    def num_tiles(self) -> int:
        rows, columns = self.config.tiles
        return rows * columns

    @cached_property
    def parked_bytes(self) -> int:
        """States of tiles, which are decoded one after the other and wait in host memory meanwhile."""
        if self.num_tiles == 1 or not self.share.decodes:
            return 0
        vae = self.request.models.vae
        state = sizes.decoder_state_bytes(vae, *self.tile, precision=self.plain)
        return self.num_tiles * state

    # Sums

    @cached_property
    def fixed_parts(self) -> tuple[MemoryItem, ...]:
        """GPU memory that does not depend on the numbers of resident layers."""
        text = self.num_layers * sizes.text_kv_layer_bytes(self.dit, self.plain)
        parts = (
            *self._root_parts,
            MemoryItem(items.SINK, self.sink_bytes),
            MemoryItem(items.CONDITIONS, text + self.num_lanes * self._block_inputs_bytes),
            MemoryItem(items.ACTIVATIONS, self._tick_bytes),
            MemoryItem(items.GRAPHS, self._graphs_bytes if self.config.graphs else 0),
        )
        decoder = decoder_parts(self.request, self.tile, self.plain) if self.share.decodes else ()
        return (*parts, *decoder, *(self.speech_parts if self._has_speech else ()))

    @property
    def _block_inputs_bytes(self) -> int:
        dit, precision, has_pose = self.injecting_dit, self.config.precision, self.request.pose
        return sizes.block_inputs_bytes(dit, self.geometry, precision, has_pose=has_pose)

    @property
    def _has_speech(self) -> bool:
        """Whether the speech encoder has to be on this GPU."""
        return self.request.constraints.speech_encoder == "device"

    @property
    def _root_parts(self) -> tuple[MemoryItem, ...]:
        root_bytes = sizes.root_bytes(self.dit, self.config.precision)
        return (*reserve_parts(self.request.hardware), MemoryItem(items.ROOT, root_bytes))

    @property
    def _tick_bytes(self) -> int:
        precision, hardware = self.config.precision, self.request.hardware
        work = sizes.tick_bytes(
            self.dit,
            self.geometry,
            precision,
            num_lanes=self.num_lanes,
            split=self.split,
            kernels=hardware.kernels,
            attends=costs.ring_reading(hardware, precision, self.config.kv_precision),
            as_stored=costs.weight_reading(hardware, precision) == "as stored",
            num_characters=self.request.num_characters,
        )
        expands = costs.needs_dequantising(hardware, precision)
        return work + expands * sizes.widest_linear_bytes(self.dit, precision)

    @cached_property
    def num_graphs(self) -> int:
        """Different ticks of a running video."""
        lanes, per_block = self.num_lanes, self.ticks_per_block
        return graphs.num_graphs(self.geometry, num_lanes=lanes, ticks_per_block=per_block)

    @property
    def _graphs_bytes(self) -> int:
        """Activations that all recordings share, their launches, and the inputs that stay in place."""
        config, hardware, lanes = self.config, self.request.hardware, self.num_lanes
        counts = costs.tick_counts(hardware, config.precision, config.kv_precision, num_lanes=lanes)
        launches = costs.launches(counts, self.injecting_dit, num_lanes=lanes)
        recorded = int(self.num_graphs * launches * graphs.BYTES_PER_LAUNCH)
        return self._tick_bytes + recorded + lanes * self._block_inputs_bytes + WORKSPACE_BYTES // 2

    @cached_property
    def fixed_bytes(self) -> int:
        return total(self.fixed_parts)

    @cached_property
    def prepare_fixed_parts(self) -> tuple[MemoryItem, ...]:
        """GPU memory while the portrait is encoded, less the layers' weights."""
        models = self.request.models
        height, width = (side * models.vae.spatial_factor for side in self.tile)
        work = sizes.encode_work_bytes(models.vae, height, width, precision=self.plain)
        on_device = self.request.constraints.text_encoder == "device"
        return (
            *self._root_parts,
            MemoryItem(items.VAE_WEIGHTS, sizes.vae_bytes(models.vae, self.plain)),
            MemoryItem(items.ENCODER_WORK, work),
            *(self._text_parts if on_device else ()),
            *(self.speech_parts[:1] if self._has_speech else ()),
        )

    @cached_property
    def prepare_fixed_bytes(self) -> int:
        return total(self.prepare_fixed_parts)

    @cached_property
    def fixed_ram_parts(self) -> tuple[MemoryItem, ...]:
        """Host memory that does not depend on the numbers of resident layers."""
        sink = self.num_layers * self.sink_layer_bytes if self.config.sink_streamed else 0
        text = {"host": self._text_parts, "device": ()}
        return (
            MemoryItem(items.PROCESS, HOST_RESERVE_BYTES),
            *(() if self._has_speech else self.speech_parts),
            *text.get(self.request.constraints.text_encoder or "disk", self._text_parts[1:]),
            MemoryItem(items.SINK, sink),
            # Twice: while a block is decoded, its state before is kept, in case memory runs out.
            MemoryItem(items.DECODER_STATE, 2 * self.parked_bytes),
            MemoryItem(items.PINNED_SHARDS, self.shard_bytes if self.shards_on_host else 0),
        )

    @property
    def _text_parts(self) -> tuple[MemoryItem, ...]:
        config = self.request.models.text
        return (
            MemoryItem(items.TEXT_ENCODER, sizes.text_encoder_bytes(config)),
            MemoryItem(items.TEXT_WORK, sizes.text_work_bytes(config)),
        )

    @property
    def speech_parts(self) -> tuple[MemoryItem, ...]:
        """Memory of the speech encoder, wherever it is."""
        shape = self.request.models.speech
        return (
            MemoryItem(items.SPEECH_ENCODER, sizes.speech_encoder_bytes(shape)),
            MemoryItem(items.SPEECH_FEATURES, sizes.speech_features_bytes(shape)),
            MemoryItem(items.SPEECH_WORK, sizes.speech_work_bytes(shape)),
        )

    @cached_property
    def fixed_ram_bytes(self) -> int:
        return total(self.fixed_ram_parts)


def decoder_parts(
    request: PlanRequest, tile: tuple[int, int], precision: Precision
) -> tuple[MemoryItem, ...]:
    """Return the GPU memory of the streaming decoder that works in tiles of this latent size."""
    vae = request.models.vae
    height, width = (side * vae.spatial_factor for side in tile)
    state = sizes.decoder_state_bytes(vae, *tile, precision=precision)
    work = sizes.decode_work_bytes(vae, height, width, precision=precision)
    # The state before a block is kept while the block is decoded; that of tiles, in host memory.
    is_whole = tile == tile_size(request, (1, 1))
    return (
        MemoryItem(items.DECODER_WEIGHTS, sizes.vae_bytes(vae, precision)),
        MemoryItem(items.DECODER_STATE, 2 * state if is_whole else state),
        MemoryItem(items.DECODER_WORK, work),
        *(pose_parts(request, precision) if request.pose else ()),
    )


def pose_parts(request: PlanRequest, precision: Precision) -> tuple[MemoryItem, ...]:
    """Return the GPU memory of the encoder of a pose video, which works on whole pictures.

    Its state is that of the decoder at most, whose layers it mirrors.
    """
    vae, (height, width) = request.models.vae, tile_size(request, (1, 1))
    factor = vae.spatial_factor
    state = sizes.decoder_state_bytes(vae, height, width, precision=precision)
    work = sizes.encode_work_bytes(vae, height * factor, width * factor, precision=precision)
    return (MemoryItem(items.POSE_STATE, state), MemoryItem(items.ENCODER_WORK, work))


def reserve_parts(hardware: Hardware) -> tuple[MemoryItem, ...]:
    """Return what a process takes of a GPU beside its tensors."""
    if not hardware.has_cuda:
        return ()
    return (
        MemoryItem(items.CONTEXT, CONTEXT_BYTES),
        MemoryItem(items.WORKSPACES, WORKSPACE_BYTES),
        MemoryItem(items.FRAGMENTATION, FRAGMENTATION_BYTES),
    )


def decoder_rank_parts(request: PlanRequest) -> tuple[MemoryItem, ...]:
    """Return the GPU memory of a rank that only decodes."""
    decoder = decoder_parts(request, tile_size(request, (1, 1)), "bf16")
    return (*reserve_parts(request.hardware), *decoder)


def tile_size(request: PlanRequest, tiles: tuple[int, int]) -> tuple[int, int]:
    """Return the latent height and width of one tile of a grid (rows, columns)."""
    (rows, columns), geometry = tiles, request.geometry
    return tile_length(geometry.latent_height, rows), tile_length(geometry.latent_width, columns)
