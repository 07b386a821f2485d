"""The numbers that a search needs, for one `PlanConfig`.

Input: a PlanRequest, a WorkShare, a PlanConfig.
Output: `Workload`: bytes and seconds as a function of how many layers and ring layers stay on the GPU.
Invariant: resident bytes grow with the number of resident layers, and block seconds do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate

from lipcast.config.precision import KVPrecision, Precision
from lipcast.config.schedule import lanes_of
from lipcast.planning import costs, items, sizes
from lipcast.planning.hardware import CONTEXT_BYTES, FRAGMENTATION_BYTES, WORKSPACE_BYTES, Hardware
from lipcast.planning.plan import MemoryItem, PlanConfig, PlanRequest, WorkShare, total
from lipcast.planning.tensors import WeightUse

HOST_RESERVE_BYTES = 2 * 2**30
"""Python, torch and its CUDA libraries, frames and sound under way."""
RING_SLOTS = 2
_TILE_OVERLAP = 8
"""Latent pixels that neighbouring tiles share."""
_GOLDEN = 0.6180339887498949


@cache
def residency_order(num_layers: int) -> tuple[int, ...]:
    """The order in which layers are given a place on the GPU.

    Any first n of it lie spread evenly, so that the copies of the others hide behind their
    computation.
    """
    return tuple(sorted(range(num_layers), key=lambda layer: (layer * _GOLDEN) % 1.0))


@dataclass(frozen=True)
class Workload:
    """Bytes and seconds of one config."""

    request: PlanRequest
    share: WorkShare
    config: PlanConfig

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

    @cached_property
    def num_layers(self) -> int:
        return self.request.models.dit.num_layers

    # Weights

    @cached_property
    def ticks_total(self) -> tuple[int, ...]:
        """Bytes that every tick needs, of the first n layers in residency order."""
        return self._total("tick")

    @cached_property
    def voices_total(self) -> tuple[int, ...]:
        """Bytes that every block needs once, for its voice."""
        return self._total("voice")

    @cached_property
    def layers_total(self) -> tuple[int, ...]:
        """Bytes of both: a layer on the GPU has all of them there."""
        return tuple(t + v for t, v in zip(self.ticks_total, self.voices_total, strict=True))

    @cached_property
    def prompt_bytes(self) -> int:
        """Bytes that are needed once per prompt; they are in host memory or on disk."""
        return self._total("prompt")[-1]

    def _total(self, use: WeightUse) -> tuple[int, ...]:
        stored = sizes.layer_bytes(self.request.models.dit, self.config.precision, use)
        return (0, *accumulate(stored[layer] for layer in residency_order(self.num_layers)))

    @cached_property
    def widest_layer_bytes(self) -> int:
        """The biggest of the buffers that pass through a slot."""
        dit, precision = self.request.models.dit, self.config.precision
        uses: tuple[WeightUse, ...] = ("tick", "voice")
        return max(max(sizes.layer_bytes(dit, precision, use)) for use in uses)

    def weights_bytes(self, resident: int) -> int:
        """Resident layers, and the slots that the others pass through."""
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
        streams = resident < self.num_layers and self.share.shards == 1
        return self.config.num_slots * self.widest_layer_bytes if streams else 0

    # Keys and values

    @cached_property
    def ring_layer_bytes(self) -> int:
        """One layer of one ring, this GPU's heads."""
        args = self.request.models.dit, self.request.geometry, self.config.kv_precision
        return self._split(sizes.ring_layer_bytes(*args))

    @cached_property
    def rings_layer_bytes(self) -> int:
        """One layer of all rings."""
        return self.num_steps * self.ring_layer_bytes

    def rings_bytes(self, resident: int) -> int:
        """Resident layers of all rings, and the slots that the others pass through."""
        slots = (
            RING_SLOTS * self.num_lanes * self.ring_layer_bytes if resident < self.num_layers else 0
        )
        return resident * self.rings_layer_bytes + slots

    @cached_property
    def sink_layer_bytes(self) -> int:
        """One layer of the sink."""
        dit, geometry = self.request.models.dit, self.request.geometry
        return self._split(sizes.sink_layer_bytes(dit, geometry, self._plain_kv))

    @cached_property
    def sink_bytes(self) -> int:
        """On the GPU: the slots a streamed sink passes through, or all of it and its placed keys.

        Every block in flight has its own placed reference keys; of a streamed sink they are rotated
        where they are read.
        """
        if self.config.sink_streamed:
            return RING_SLOTS * self.sink_layer_bytes
        dit, geometry = self.request.models.dit, self.request.geometry
        placed = self._split(sizes.placed_layer_bytes(dit, geometry, self._plain_kv))
        return self.num_layers * (self.sink_layer_bytes + self.num_lanes * placed)

    @property
    def _plain_kv(self) -> KVPrecision:
        return "fp32" if self.config.precision == "fp32" else "bf16"

    def _split(self, num_bytes: int) -> int:
        """Return what the GPU with the most heads holds of `num_bytes` for all heads."""
        return -(-num_bytes * self._most_heads // self.request.models.dit.num_heads)

    @property
    def split(self) -> float:
        """How many times less than one GPU the fullest of those that split heads holds and computes."""
        return self.request.models.dit.num_heads / self._most_heads

    @property
    def _most_heads(self) -> int:
        return -(-self.request.models.dit.num_heads // self.share.ulysses)

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
    def decoder_state_bytes(self) -> int:
        """The state of one tile."""
        height, width = self.tile
        return sizes.decoder_state_bytes(
            self.request.models.vae, height, width, precision=self._vae_precision
        )

    @property
    def _vae_precision(self) -> Precision:
        return "fp32" if self.config.precision == "fp32" else "bf16"

    def decoder_parts(self) -> tuple[MemoryItem, ...]:
        return decoder_parts(self.request, self.tile, self._vae_precision)

    # Sums

    @cached_property
    def fixed_parts(self) -> tuple[MemoryItem, ...]:
        """GPU memory that does not depend on the numbers of resident layers."""
        dit, precision = self.request.models.dit, self.config.precision
        text = self.num_layers * sizes.text_kv_layer_bytes(dit, self._plain_kv)
        voice = self.num_lanes * sizes.audio_conditioning_bytes(dit, precision)
        parts = (
            *reserve_parts(self.request.hardware),
            MemoryItem(items.ROOT, sizes.root_bytes(dit, precision)),
            MemoryItem(items.SINK, self.sink_bytes),
            MemoryItem(items.CONDITIONS, text + voice),
            MemoryItem(items.ACTIVATIONS, self.tick_bytes),
        )
        return parts + (self.decoder_parts() if self.share.decodes else ())

    @cached_property
    def tick_bytes(self) -> int:
        dit, geometry, precision = (
            self.request.models.dit,
            self.request.geometry,
            self.config.precision,
        )
        work = sizes.tick_bytes(
            dit, geometry, precision, num_lanes=self.num_lanes, split=self.split
        )
        if costs.needs_dequantising(self.request.hardware, precision):
            work += sizes.widest_linear_bytes(dit, precision)
        return work

    @cached_property
    def fixed_bytes(self) -> int:
        return total(self.fixed_parts)

    @cached_property
    def prepare_fixed_parts(self) -> tuple[MemoryItem, ...]:
        """GPU memory while the picture is encoded, less the layers' weights."""
        vae, factor = self.request.models.vae, self.request.models.vae.spatial_factor
        height, width = (side * factor for side in self.tile)
        work = sizes.encode_work_bytes(vae, height, width, precision=self._vae_precision)
        on_device = self.request.constraints.text_encoder == "device"
        text = self.request.models.text
        return (
            *reserve_parts(self.request.hardware),
            MemoryItem(
                items.ROOT, sizes.root_bytes(self.request.models.dit, self.config.precision)
            ),
            MemoryItem(items.VAE_WEIGHTS, sizes.vae_bytes(vae, self._vae_precision)),
            MemoryItem(items.ENCODER_WORK, work),
            MemoryItem(items.TEXT_ENCODER, sizes.text_encoder_bytes(text) if on_device else 0),
            MemoryItem(items.TEXT_WORK, sizes.text_work_bytes(text) if on_device else 0),
        )

    @cached_property
    def prepare_fixed_bytes(self) -> int:
        return total(self.prepare_fixed_parts)

    @cached_property
    def fixed_ram_parts(self) -> tuple[MemoryItem, ...]:
        """Host memory that does not depend on the numbers of resident layers."""
        # Twice: while a block is decoded, its state before is kept, in case memory runs out.
        parked = 2 * self.num_tiles * self.decoder_state_bytes if self.parks_decoder else 0
        sink = self.num_layers * self.sink_layer_bytes if self.config.sink_streamed else 0
        models, text_encoder = self.request.models, self.request.constraints.text_encoder
        on_host, on_device = text_encoder == "host", text_encoder == "device"
        return (
            MemoryItem(items.PROCESS, HOST_RESERVE_BYTES),
            *self.speech_parts,
            MemoryItem(items.TEXT_ENCODER, sizes.text_encoder_bytes(models.text) if on_host else 0),
            MemoryItem(items.TEXT_WORK, 0 if on_device else sizes.text_work_bytes(models.text)),
            MemoryItem(items.SINK, sink),
            MemoryItem(items.DECODER_STATE, parked),
            MemoryItem(items.PINNED_SHARDS, self.shard_bytes if self.shards_on_host else 0),
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

    @property
    def parks_decoder(self) -> bool:
        """Tiles are decoded one after the other; the states of the others wait in host memory."""
        return self.num_tiles > 1 and self.share.decodes

    @cached_property
    def fixed_ram_bytes(self) -> int:
        return total(self.fixed_ram_parts)


def decoder_parts(
    request: PlanRequest, tile: tuple[int, int], precision: Precision
) -> tuple[MemoryItem, ...]:
    """GPU memory of the streaming decoder that works in tiles of this latent size."""
    vae, factor = request.models.vae, request.models.vae.spatial_factor
    height, width = tile
    work = sizes.decode_work_bytes(vae, height * factor, width * factor, precision=precision)
    state = sizes.decoder_state_bytes(vae, height, width, precision=precision)
    # The state before a block is kept while the block is decoded; that of tiles, in host memory.
    is_whole = tile == tile_size(request, (1, 1))
    return (
        MemoryItem(items.DECODER_WEIGHTS, sizes.vae_bytes(vae, precision)),
        MemoryItem(items.DECODER_STATE, 2 * state if is_whole else state),
        MemoryItem(items.DECODER_WORK, work),
    )


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
    """GPU memory of a rank that only decodes."""
    whole = tile_size(request, (1, 1))
    return (*reserve_parts(request.hardware), *decoder_parts(request, whole, "bf16"))


def tile_size(request: PlanRequest, tiles: tuple[int, int]) -> tuple[int, int]:
    """Latent height and width of one tile of a grid, the overlap included."""
    sides = request.geometry.latent_height, request.geometry.latent_width
    height, width = (
        side if count == 1 else min(side, -(-side // count) + _TILE_OVERLAP)
        for side, count in zip(sides, tiles, strict=True)
    )
    return height, width
