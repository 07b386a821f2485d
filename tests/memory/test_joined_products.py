"""Queries, keys and values by one product: their weights lie side by side wherever a plan puts them."""

from __future__ import annotations

import pytest
import torch
from fake_device import LateCopier, arenas
from torch import Tensor, nn

import lipcast
from lipcast.config.precision import StoredPrecision
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.models.layers import AttentionProjections, joined_product, side_by_side
from lipcast.models.quant_formats import quantise_rows
from lipcast.planning.plan import Placement
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into, without_memory
from lipcast.weights.quant import quantised
from lipcast.weights.quant_linear import QuantLinear, replace_linears, use_direct_products
from lipcast.weights.schemes import SCHEMES

WEIGHTS = checkpoint_dir("tiny") / "diffusion_pytorch_model.safetensors"
PLACES: tuple[Placement, ...] = ("resident", "pinned", "disk")
PRECISIONS: tuple[StoredPrecision, ...] = ("bf16", "fp8", "int8", "int4")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """The same numbers, or neighbours: sums may be in another order."""
    for one, other in zip(found, expected, strict=True):
        peak = float(other.float().abs().max())
        torch.testing.assert_close(one, other, rtol=2.0**-7, atol=2.0**-12 * peak)


def loaded(tiny: lipcast.Lipcast, precision: StoredPrecision) -> tuple[DiT, WeightStore]:
    """The embedded model, a part of its layers in every place."""
    config, (device, host) = tiny.bundle.dit.config, arenas()
    places = tuple(PLACES[layer % len(PLACES)] for layer in range(config.num_layers))
    source = quantised(open_tensors(WEIGHTS), precision)
    plan = WeightPlan(places, 2)
    store = WeightStore(
        source, plan, dtype=torch.bfloat16, device=device, host=host, copier=LateCopier()
    )
    with without_memory():
        model = DiT(config)
    load_into(model, source, dtype=torch.bfloat16, place=store.place)
    store.attach(model)
    use_direct_products(model, enabled=True)
    return model.eval().requires_grad_(False), store


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_product_in_any_place(tiny: lipcast.Lipcast, precision: StoredPrecision) -> None:
    model, store = loaded(tiny, precision)
    x = drawn(9, model.config.dim)
    rows = quantise_rows(x) if precision == "fp8" else x
    for layer, block in enumerate(model.layers):
        model.ensure_resident("tick", layer)
        own = block.self_attn
        together = own.queries_keys_values(rows, joined=True)
        assert len({part.untyped_storage().data_ptr() for part in together}) == 1
        assert_near(together, own.queries_keys_values(rows, joined=False))
    store.release()


def apart(precision: StoredPrecision) -> AttentionProjections:
    own = AttentionProjections(64, 2, 1e-6).to(torch.bfloat16).requires_grad_(False)
    if precision in SCHEMES:
        weights = {name: getattr(own, name).weight.float() for name in "qkv"}
        replace_linears(own, [(name, SCHEMES[precision]) for name in "qkv"], dtype=torch.bfloat16)
        for name, weight in weights.items():
            getattr(own, name).fill(SCHEMES[precision].quantise(weight))
    return own


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_lie_apart_are_multiplied_apart(precision: StoredPrecision) -> None:
    own, x = apart(precision), drawn(5, 64)
    assert joined_product((own.q, own.k, own.v), x) is None
    found = own.queries_keys_values(x, joined=True)
    expected = own.queries_keys_values(x, joined=False)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_layers_of_several_kinds_are_multiplied_apart() -> None:
    linear, dtype = nn.Linear(64, 32), torch.bfloat16
    first, second = (QuantLinear(linear, SCHEMES[p], dtype=dtype) for p in PRECISIONS[1:3])
    plain, bare = nn.Linear(64, 32), nn.Linear(64, 32, bias=False)
    x = torch.zeros(3, 64)
    for layers in (
        (first, second),
        (first, plain),
        (plain, first),
        (bare, plain),
        (nn.Identity(),),
    ):
        assert joined_product(layers, x) is None
    assert joined_product((plain, plain), quantise_rows(x)) is None


def test_tensors_side_by_side() -> None:
    """A view without a copy, only where one tensor ends and the next begins."""
    buffer = torch.arange(24.0)
    first, second, third = (buffer[8 * i : 8 * i + 8].view(2, 4) for i in range(3))
    joined = side_by_side([first, second, third])
    assert joined is not None and joined.data_ptr() == buffer.data_ptr()
    assert torch.equal(joined, buffer.view(6, 4))
    assert side_by_side([second, third]) is not None
    for others in (
        [second, first],
        [first, third],
        [first, second.clone()],
        [first, buffer[8:16].view(4, 2)],
        [first, buffer.view(torch.int32)[8:16].view(2, 4)],
        [first.t(), second],
    ):
        assert side_by_side(others) is None
