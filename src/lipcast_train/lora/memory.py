"""Bytes that training adapters takes, from configurations alone, before anything is loaded.

Input: `TrainingShape`. Output: `TrainingMemory`, by part, and whether it fits. Layers keep their inputs and
run again for their gradients: what grows with their number are inputs, and the sink's keys and values.
The working memory of one layer is a multiple of one activation, counted on the modules (see the constants).

Legend: T tokens of the windows, K tokens of the sinks, D model width, b bytes of a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import get_args

from lipcast.config.geometry import Geometry
from lipcast.config.models import DiTConfig
from lipcast.config.precision import PRECISIONS, PlainPrecision, Precision
from lipcast.config.units import format_bytes
from lipcast.errors import MemoryBudgetError
from lipcast.planning.hardware import CONTEXT_BYTES, FRAGMENTATION_BYTES, WORKSPACE_BYTES
from lipcast.planning.sizes import WEIGHT_FORMATS, is_quantised
from lipcast.planning.tensors import Tensors, dit_layer_tensors, dit_root_tensors
from lipcast_train.lora.adapters import AdapterOptions, adapted_layers

_FP32 = 4
_KEPT_COPIES = 5
"""Of an adapter, in float32: itself, its gradient, two moments of AdamW, the moving average."""
_STEP_COPIES = 2
"""Of an adapter, while AdamW takes a step; activations are gone by then."""
_STREAM_UNITS, _BRANCH_UNITS, _FFN_UNITS = 28.0, 8.5, 4.1
"""Working memory of one layer, per T D: float32 of the stream and the norms; numbers of attention; and, times
the ratio of the widths, numbers of the feed-forward."""
_MARGIN = 1.05
"""For biases, tables of positions and what else is small."""
_SMALLEST_WEIGHTS: tuple[Precision, ...] = ("fp8", "int4")


@dataclass(frozen=True, slots=True)
class TrainingShape:
    """Everything that decides how much memory a training takes."""

    config: DiTConfig
    geometry: Geometry
    weights: Precision
    adapters: AdapterOptions
    num_blocks: int
    """Of a window."""
    batch: int
    number_bytes: int
    """Of what is not quantised, and of activations: 2 or 4."""
    on_gpu: bool

    @property
    def tokens(self) -> int:
        """Tokens of all windows of a step."""
        frames = self.num_blocks * self.geometry.latents_per_block
        return self.batch * frames * self.geometry.tokens_per_frame

    @property
    def sink_tokens(self) -> int:
        """Condition tokens of all windows of a step."""
        return self.batch * self.geometry.sink_tokens


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one training, by part."""

    weights: int
    adapters: int
    kept_inputs: int
    working: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.kept_inputs + self.working + self.overhead

    def lines(self) -> tuple[str, ...]:
        """Return the parts for a person."""
        parts = (
            ("frozen weights", self.weights),
            ("adapters, gradients, optimiser, average", self.adapters),
            ("inputs kept of every layer", self.kept_inputs),
            ("working memory of one layer", self.working),
            ("CUDA and its allocator", self.overhead),
            ("in all", self.total),
        )
        return tuple(f"{name:<42}{format_bytes(size):>12}" for name, size in parts if size)


def plan_memory(shape: TrainingShape) -> TrainingMemory:
    """Return the bytes that a training needs."""
    parameters = num_adapter_parameters(shape.config, shape.adapters)
    working = max(_layer_work(shape), _time_work(shape), _STEP_COPIES * _FP32 * parameters)
    overhead = CONTEXT_BYTES + WORKSPACE_BYTES + FRAGMENTATION_BYTES if shape.on_gpu else 0
    return TrainingMemory(
        weights=frozen_bytes(shape.config, shape.weights, number_bytes=shape.number_bytes),
        adapters=_KEPT_COPIES * _FP32 * parameters,
        kept_inputs=int(_MARGIN * _kept_inputs(shape)),
        working=int(_MARGIN * working),
        overhead=overhead,
    )


def num_adapter_parameters(config: DiTConfig, options: AdapterOptions) -> int:
    """Return the number of trained parameters."""
    return options.rank * sum(map(sum, adapted_layers(config, options.targets).values()))


def frozen_bytes(config: DiTConfig, weights: Precision, *, number_bytes: int) -> int:
    """Return the bytes of the transformer with its layers stored in a format."""

    def of(tensors: Tensors, *, in_layers: bool) -> Iterator[int]:
        for name, shape in tensors.items():
            if in_layers and weights in _STORED and is_quantised(name, shape, weights):
                yield sum(WEIGHT_FORMATS[weights].part_bytes(shape))
            else:
                yield prod(shape) * number_bytes

    layers = (dit_layer_tensors(config, layer) for layer in range(config.num_layers))
    in_layers = sum(sum(of(tensors, in_layers=True)) for tensors in layers)
    return in_layers + sum(of(dit_root_tensors(config), in_layers=False))


_STORED = tuple(name for name in PRECISIONS if name not in get_args(PlainPrecision))


def _kept_inputs(shape: TrainingShape) -> int:
    """Return what is kept beside the layer that runs again.

    The streams before all layers at first; the gradients of sinks and text keys of all layers at last.
    """
    config, b = shape.config, shape.number_bytes
    # Keys of a sink before and after their rotation, and its values; keys and values of the text.
    shared = b * (3 * shape.sink_tokens + 2 * shape.batch * config.text_len)
    streams = _FP32 * shape.tokens * (config.num_layers + len(config.audio_inject_layers))
    condition = config.num_layers * (_FP32 * shape.sink_tokens + shared)
    return config.dim * (condition + max(streams, config.num_layers * shared))


def _layer_work(shape: TrainingShape) -> int:
    """Return the most that running one layer again and computing its gradients holds."""
    config, b = shape.config, shape.number_bytes
    ratio = config.ffn_dim / config.dim
    units = _STREAM_UNITS + b * (_BRANCH_UNITS + _FFN_UNITS * ratio)
    restored = b * config.ffn_dim * config.dim if shape.weights in _STORED else 0
    return int(units * shape.tokens * config.dim) + _joined_keys(shape) + restored


def _joined_keys(shape: TrainingShape) -> int:
    """Return keys and values of every block, each beside all that it attends to."""
    geometry = shape.geometry
    block, ring = geometry.latents_per_block, geometry.window
    frames = sum(min(ring, (index + 1) * block) for index in range(shape.num_blocks))
    seen = frames * geometry.tokens_per_frame + shape.num_blocks * geometry.sink_tokens
    return 2 * shape.number_bytes * shape.config.dim * shape.batch * seen


def _time_work(shape: TrainingShape) -> int:
    """Return what encoding a timestep holds: its widest weight in float32."""
    return _FP32 * 6 * shape.config.dim**2


def check_memory(shape: TrainingShape, available: int) -> None:
    """Raise MemoryBudgetError, with what would fit, where a training does not."""
    plan = plan_memory(shape)
    if plan.total <= available:
        return
    smaller = [
        f"{words} ({format_bytes(size)})"
        for words, other in _smaller(shape)
        if (size := plan_memory(other).total) <= available
    ]
    advice = f"what fits: {', or '.join(smaller)}" if smaller else "use a smaller --side as well"
    raise MemoryBudgetError(
        f"training these adapters needs {format_bytes(plan.total)}, and {format_bytes(available)} are "
        f"there; {advice}"
    )


def _smaller(shape: TrainingShape) -> Iterator[tuple[str, TrainingShape]]:
    """Yield flags that need less memory, those that change the training least first."""
    if shape.batch > 1:
        yield "--batch 1", replace(shape, batch=1)
    alone = replace(shape, batch=1)
    for weights in _SMALLEST_WEIGHTS:
        if frozen_bytes(shape.config, weights, number_bytes=shape.number_bytes) < frozen_bytes(
            shape.config, shape.weights, number_bytes=shape.number_bytes
        ):
            alone = replace(alone, weights=weights)
            yield f"--weights {weights} --batch 1", alone
    for blocks in (2, 1):
        if blocks < shape.num_blocks:
            short = replace(alone, num_blocks=blocks)
            yield f"--weights {alone.weights} --batch 1 --blocks {blocks}", short
