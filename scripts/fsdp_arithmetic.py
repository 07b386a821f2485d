"""The published arithmetic of 4 GPUs with 24 GB, explained.

A published study of the public implementation, its weights sharded with FSDP over four GPUs, counts
per GPU 21.48 GB resident plus 4.17 GB to unshard, 25.65 GB in all where 22.15 GB are usable; 21.2
GB with 32 frames, 19.6 GB with online decode. It gives no formula. Outputs: the formulas that
reproduce these figures, and by how much they miss them. The published "GB" are GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipcast.config.geometry import Geometry
from lipcast.config.models import Models
from lipcast.config.units import GIB
from lipcast.planning import sizes
from lipcast.planning.plan import MemoryItem, total
from lipcast.planning.tensors import dit_tensors, num_parameters

USABLE_GIB = 22.15
"""What the study measures as usable on a 24 GB card."""
_BF16 = 2
_COND_ROWS = 3000
"""Rows of condition keys that the public pipeline allocates, whatever the size of the picture."""
_ACTIVATION_GIB = 0.286
_ACTIVATION_GIB_PER_TOKEN = 0.000818
"""Peak above weights and caches of the public implementation against tokens per latent frame: a
line
through 0.6 GiB at 384 and 1.15 GiB at 1056, measured."""


@dataclass(frozen=True, slots=True)
class FsdpExplanation:
    """Per GPU: what stays there, and what the first unshard adds."""

    resident: tuple[MemoryItem, ...]
    unshard: MemoryItem
    lipcast_unshard: MemoryItem
    """What two unsharded layers take instead."""

    @property
    def resident_bytes(self) -> int:
        return total(self.resident)

    @property
    def peak_bytes(self) -> int:
        return self.resident_bytes + self.unshard.num_bytes


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """A published figure beside the computed one."""

    what: str
    published_gib: float
    computed_gib: float | None
    """None: no formula was found."""

    @property
    def error(self) -> float | None:
        if self.computed_gib is None:
            return None
        return self.computed_gib / self.published_gib - 1


def explain_fsdp(
    *, height: int, width: int, infer_frames: int, num_gpus: int = 4, models: Models | None = None
) -> FsdpExplanation:
    """The public implementation on `num_gpus`, weights sharded over all, one denoising step per
    GPU.

    FSDP wraps `blocks` only. Everything else (the audio injectors among it) is one unit, which is
    unsharded as a whole when the forward pass begins, and stays so.
    """
    models = models or Models()
    geometry = Geometry.of(
        models.dit, models.vae, height=height, width=width, infer_frames=infer_frames
    )
    tensors = dit_tensors(models.dit)
    everything = num_parameters(tensors) * _BF16
    root = (
        everything
        - num_parameters({n: s for n, s in tensors.items() if n.startswith("blocks.")}) * _BF16
    )
    token = models.dit.num_layers * sizes.kv_bytes_per_token(models.dit, "bf16")
    window_tokens = geometry.window * geometry.tokens_per_frame
    widest = max(sizes.layer_bytes(models.dit, "bf16", "tick"))
    return FsdpExplanation(
        resident=(
            MemoryItem(f"weights, 1/{num_gpus}", -(-everything // num_gpus)),
            MemoryItem("KV ring of one step", window_tokens * token),
            MemoryItem(f"condition keys, {_COND_ROWS} rows", _COND_ROWS * token),
            MemoryItem("autoencoder, speech encoder", _encoders(models)),
            MemoryItem("activations", _activations(geometry.tokens_per_frame)),
        ),
        unshard=MemoryItem("unsharded: all outside the blocks", root),
        lipcast_unshard=MemoryItem("two unsharded layers", 2 * widest),
    )


def _encoders(models: Models) -> int:
    """Both in bf16; the text encoder is on the CPU."""
    return sizes.vae_bytes(models.vae) + sizes.speech_encoder_bytes(models.speech) // 2


def _activations(tokens_per_frame: int) -> int:
    return int((_ACTIVATION_GIB + _ACTIVATION_GIB_PER_TOKEN * tokens_per_frame) * GIB)


def rival_resident_bytes(models: Models | None = None, *, num_gpus: int = 3) -> int:
    """Another reading that gives the same figure: weights over three GPUs, text encoder beside them.

    Nothing published tells the two apart; only the first also explains the figure of 32 frames.
    """
    models = models or Models()
    everything = num_parameters(dit_tensors(models.dit)) * _BF16
    return everything // num_gpus + sizes.text_encoder_bytes(models.text) + _encoders(models)


def published_figures() -> tuple[PublishedFigure, ...]:
    """Every published figure, with what the formulas above give.

    Long clips: 720*400 (704x384 pixels), 48 frames. Short ones: 688*368 (640x384), 32 frames.
    """
    long = explain_fsdp(height=704, width=384, infer_frames=48)
    short = explain_fsdp(height=640, width=384, infer_frames=32)
    return (
        PublishedFigure("resident, 48 frames", 21.48, long.resident_bytes / GIB),
        PublishedFigure("unshard", 4.17, long.unshard.num_bytes / GIB),
        PublishedFigure("peak, 48 frames", 25.65, long.peak_bytes / GIB),
        PublishedFigure("peak, 32 frames at 688*368", 21.2, short.peak_bytes / GIB),
        PublishedFigure("the same with online decode", 19.6, None),
    )
