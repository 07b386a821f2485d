"""Weights in any place give the model that has them all at hand."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from fake_device import LateCopier, arenas
from hypothesis import given, settings
from hypothesis import strategies as st

import lipcast
from lipcast.config.models import DiTConfig
from lipcast.config.precision import Precision
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.models.sink import Sink
from lipcast.planning import items
from lipcast.planning.plan import Placement
from lipcast.planning.sizes import layer_bytes, root_bytes
from lipcast.planning.tensors import WEIGHT_USES
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into, without_memory
from lipcast.weights.quant import quantised
from lipcast.weights.schemes import SCHEMES
from lipcast.weights.source import TensorSource

WEIGHTS = checkpoint_dir("tiny") / "diffusion_pytorch_model.safetensors"
PLACEMENTS: tuple[Placement, ...] = ("resident", "pinned", "disk")


def stored(
    config: DiTConfig, source: TensorSource, plan: WeightPlan, dtype: torch.dtype
) -> tuple[DiT, WeightStore, LateCopier]:
    device, host = arenas()
    copier = LateCopier()
    store = WeightStore(source, plan, dtype=dtype, device=device, host=host, copier=copier)
    with without_memory():
        model = DiT(config)
    load_into(model, source, dtype=dtype, place=store.place)
    store.attach(model)
    return model.eval().requires_grad_(False), store, copier


@pytest.fixture(scope="module")
def config(tiny: lipcast.Lipcast) -> DiTConfig:
    return tiny.bundle.dit.config


def outputs(model: DiT) -> list[torch.Tensor]:
    """What prompt, voice and a pass over the layers give."""
    config, generator = model.config, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.inference_mode():
        text = model.encode_text(noise(9, config.text_dim))
        audio = model.encode_audio(noise(1, config.num_audio_layers, config.audio_dim, 12))
        layout, layers = model.sink_layout(8, 8), range(config.num_layers)
        sink = Sink.allocate(layout, num_layers=config.num_layers, device=model.device)
        for _ in range(2):
            model.prefill(noise(16, 1, 8, 8), noise(16, 19, 8, 8), text, sink)
        kept = [sink.planes(layer).values_TNd for layer in layers]
        return [*(kv[0] for kv in text), *(i.keys_AFKNd for i in audio.injectors), *kept]


@pytest.fixture(scope="module")
def expected(config: DiTConfig) -> list[torch.Tensor]:
    with without_memory():
        model = DiT(config)
    load_into(model, open_tensors(WEIGHTS), dtype=torch.float32)
    return outputs(model.eval())


def test_tiny_has_layers_to_place(config: DiTConfig) -> None:
    assert config.num_layers >= 4 and config.audio_inject_layers


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_placement_gives_the_same_numbers(
    config: DiTConfig, expected: list[torch.Tensor], data: st.DataObject
) -> None:
    layers = data.draw(st.tuples(*[st.sampled_from(PLACEMENTS)] * config.num_layers))
    plan = WeightPlan(layers, data.draw(st.integers(2, 3)), data.draw(st.booleans()))
    model, store, _ = stored(config, open_tensors(WEIGHTS), plan, torch.float32)
    for got, want in zip(outputs(model), expected, strict=True):
        assert torch.equal(got, want)
    assert store.plan == plan


def test_layers_move_between_places_while_the_model_is_used(
    config: DiTConfig, expected: list[torch.Tensor]
) -> None:
    count, draw = config.num_layers, random.Random(0)
    start = WeightPlan(("resident",) * count, 0)
    model, store, _ = stored(config, open_tensors(WEIGHTS), start, torch.float32)
    for slots, keeps in product((2, 3), (True, False)):
        layers = tuple(draw.choice(PLACEMENTS) for _ in range(count))
        store.apply_plan(WeightPlan(layers, slots, keeps))
        for got, want in zip(outputs(model), expected, strict=True):
            assert torch.equal(got, want)
    store.apply_plan(start)
    assert (
        items.LAYER_SLOTS not in store._device.parts
        and items.PINNED_LAYERS not in store._host.parts
    )


@pytest.mark.parametrize("precision", ["bf16", *SCHEMES])
def test_bytes_are_the_planners(config: DiTConfig, precision: Precision) -> None:
    layers: tuple[Placement, ...] = ("resident", "pinned", "disk", *("pinned",) * 100)
    layers = layers[: config.num_layers]
    source = quantised(open_tensors(WEIGHTS), precision)
    _, store, _ = stored(config, source, WeightPlan(layers, 3), torch.bfloat16)
    sizes = {use: layer_bytes(config, precision, use) for use in WEIGHT_USES}

    def total(where: str) -> int:
        at = [i for i, layer in enumerate(layers) if layer == where]
        return sum(sizes["tick"][i] + sizes["audio"][i] for i in at)

    widest = max(*sizes["tick"], *sizes["audio"])
    assert store._device.parts == {
        items.ROOT: root_bytes(config, precision),
        items.LAYERS: total("resident"), items.LAYER_SLOTS: 3 * widest,
    }  # fmt: skip
    assert store._host.parts == {
        items.PINNED_LAYERS: total("pinned"),
        items.PROMPT_WEIGHTS: sum(sizes["prompt"]), items.STAGING: 2 * widest,
    }  # fmt: skip


def test_weights_cross_once_per_pass(config: DiTConfig) -> None:
    plan = WeightPlan(("pinned",) * config.num_layers, 3)
    model, _, copier = stored(config, open_tensors(WEIGHTS), plan, torch.float32)
    ticks = sum(layer_bytes(config, "fp32", "tick"))
    with torch.inference_mode():
        for layer in range(config.num_layers):
            model.ensure_resident("tick", layer)
        before = copier.bytes_to_device
        for layer in range(config.num_layers):
            model.ensure_resident("tick", layer)
    assert copier.bytes_to_device - before == ticks


def test_a_failed_copy_leaves_the_store_usable(
    config: DiTConfig, expected: list[torch.Tensor]
) -> None:
    plan = WeightPlan(("pinned",) * config.num_layers, 2)
    model, _, copier = stored(config, open_tensors(WEIGHTS), plan, torch.float32)
    for number in (0, 1, config.num_layers + 1, 2 * config.num_layers):
        copier.fail_at = copier.num_copies + number
        with pytest.raises(torch.OutOfMemoryError, match="injected"):
            outputs(model)
        copier.fail_at = None
        for got, want in zip(outputs(model), expected, strict=True):
            assert torch.equal(got, want)


def test_no_room_on_the_host_leaves_everything_in_a_place(
    config: DiTConfig, expected: list[torch.Tensor]
) -> None:
    count = config.num_layers
    model, store, _ = stored(
        config, open_tensors(WEIGHTS), WeightPlan(("resident",) * count, 0), torch.float32
    )
    host = store._host
    host.budget_bytes = host.used_bytes + 2 * max(layer_bytes(config, "fp32", "tick"))
    with pytest.raises(torch.OutOfMemoryError, match="streamed layers, pinned"):
        store.apply_plan(WeightPlan(("pinned",) * count, 2))
    store.apply_plan(WeightPlan(("resident",) * count, 0))
    for got, want in zip(outputs(model), expected, strict=True):
        assert torch.equal(got, want)
