"""The predicted memory of training adapters against what the modules really hold.

Every storage that an operation makes, forward and backward, is counted from its birth to its death. Shapes of
the published model run on fake tensors, which have no memory: of the CPU, because the engine of gradients
refuses fake ones of a GPU that PyTorch was not built for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lipcast.config.geometry import Geometry
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.precision import Precision
from lipcast.errors import MemoryBudgetError
from lipcast.lab.gpu_work import quantised_names
from lipcast.models.dit import DiT
from lipcast.weights.quant_linear import replace_linears
from lipcast.weights.schemes import SCHEMES
from lipcast_train.data.windows import WindowBatch
from lipcast_train.lora.adapters import AdapterOptions, add_adapters
from lipcast_train.lora.memory import (
    TrainingShape,
    check_memory,
    frozen_bytes,
    num_adapter_parameters,
    plan_memory,
)
from lipcast_train.networks.frozen import freeze
from lipcast_train.phases.transformer import FlowObjective
from live_bytes import LiveBytes

GIB = 2**30
PUBLISHED = DiTConfig()
NARROW = DiTConfig(
    dim=192, ffn_dim=512, num_heads=3, num_layers=2, text_dim=64, audio_dim=64, num_audio_layers=4,
    audio_inject_layers=(0,),
)  # fmt: skip


def shape_of(
    config: DiTConfig, *, weights: Precision = "fp8", blocks: int = 4, batch: int = 1,
    size: tuple[int, int] = (704, 384), rank: int = 32, number_bytes: int = 2,
) -> TrainingShape:  # fmt: skip
    geometry = Geometry.of(config, VAEConfig(), height=size[0], width=size[1], infer_frames=48)
    adapters = AdapterOptions(rank=rank, alpha=float(rank))
    return TrainingShape(
        config, geometry, weights, adapters, blocks, batch, number_bytes, on_gpu=False
    )


def held_bytes(shape: TrainingShape) -> int:
    """Return what one step holds at most beside the weights: activations and gradients."""
    dtype = torch.bfloat16 if shape.number_bytes == 2 else torch.float32
    dit = DiT(shape.config)
    for parameter in dit.parameters():  # `Module.to` does not take fake tensors
        parameter.data = parameter.data.to(dtype)
    if shape.weights in SCHEMES:
        scheme = SCHEMES[shape.weights]
        replace_linears(dit, [(name, scheme) for name in quantised_names(dit)], dtype=dtype)
    freeze(dit)
    add_adapters(dit, shape.adapters, seed=0)
    objective = FlowObjective(
        dit, {"": torch.zeros(100, shape.config.text_dim)}, ring_frames=shape.geometry.window
    )
    with LiveBytes() as live:
        objective(windows(shape)).backward()
    return live.peak


def windows(shape: TrainingShape) -> WindowBatch:
    config, geometry, batch = shape.config, shape.geometry, shape.batch
    size = geometry.latent_height, geometry.latent_width
    frames = shape.num_blocks * config.latents_per_block
    latents = torch.zeros(batch, config.in_dim, frames, *size)
    return WindowBatch(
        clean_BCFHW=latents,
        noise_BCFHW=latents,
        ref_BC1HW=latents[:, :, :1],
        motion_BCFHW=torch.zeros(batch, config.in_dim, 19, *size),
        features_BLEV=torch.zeros(batch, config.num_audio_layers, config.audio_dim, 4 * frames),
        weights_B1HW=torch.ones(batch, 1, *size),
        prompts=("",) * batch,
        first_frames=(0,) * batch,
        distances=((10,) * shape.num_blocks,) * batch,
        levels=(0.5,) * batch,
    )


def planned_bytes(shape: TrainingShape) -> int:
    """Return what the plan says of the same: all but the weights, and but one gradient of the adapters."""
    plan = plan_memory(shape)
    gradient = 4 * num_adapter_parameters(shape.config, shape.adapters)
    return plan.kept_inputs + plan.working + gradient


def assert_bounds(shape: TrainingShape, held: int, ratio: float) -> None:
    assert held <= planned_bytes(shape) <= ratio * held


@pytest.mark.parametrize(
    ("weights", "number_bytes", "blocks", "batch"),
    [("int8", 4, 2, 1), ("int4", 4, 1, 2)],
)
def test_the_plan_bounds_what_a_step_holds_on_the_cpu(
    weights: Precision, number_bytes: int, blocks: int, batch: int
) -> None:
    shape = shape_of(
        NARROW, weights=weights, blocks=blocks, batch=batch, size=(128, 128), rank=8,
        number_bytes=number_bytes,
    )  # fmt: skip
    assert_bounds(shape, held_bytes(shape), 1.35)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "blocks"), [("fp8", 4), ("bf16", 1)])
def test_the_plan_bounds_a_step_of_the_published_shapes(weights: Precision, blocks: int) -> None:
    # All layers are alike: two of the forty, and one of the twelve injectors.
    config = replace(PUBLISHED, num_layers=2, audio_inject_layers=(0,))
    shape = shape_of(config, weights=weights, blocks=blocks)
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = held_bytes(shape)
    assert_bounds(shape, held, 1.25)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "fp8", "int8", "int4", "nvfp4"])
def test_frozen_weights_are_counted_to_the_byte(weights: Precision) -> None:
    number_bytes = 4 if weights == "fp32" else 2
    dit = DiT(NARROW).to(torch.float32 if weights == "fp32" else torch.bfloat16)
    if weights in SCHEMES:
        scheme = SCHEMES[weights]
        replace_linears(dit, [(n, scheme) for n in quantised_names(dit)], dtype=torch.bfloat16)
    held = sum(t.nbytes for t in (*dit.parameters(), *dit.buffers()))
    assert frozen_bytes(NARROW, weights, number_bytes=number_bytes) == held


def test_the_published_model_fits_the_cards_that_the_guide_names() -> None:
    def total(**how: Any) -> float:
        return plan_memory(replace(shape_of(PUBLISHED, **how), on_gpu=True)).total / GIB

    assert 47 < total(weights="bf16") < 80
    assert total(weights="fp8") < 44
    assert total(weights="int4", blocks=1, size=(512, 512)) < 24


def test_a_refusal_names_what_would_fit() -> None:
    shape = shape_of(PUBLISHED, weights="bf16", batch=4)
    with pytest.raises(MemoryBudgetError) as error:
        check_memory(shape, 48 * GIB)
    assert "--weights fp8 --batch 1" in str(error.value)
    with pytest.raises(MemoryBudgetError, match="use a smaller --side as well"):
        check_memory(shape, 4 * GIB)
    check_memory(shape, 200 * GIB)
