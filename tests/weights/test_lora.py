"""Adapters: names, alpha, weights, several at once, and every way not to fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lipcast.errors import CheckpointError, UsageError
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into
from lipcast.weights.lora import LoraSpec, merge_loras, parse_lora
from lipcast.weights.source import TensorSource

from .conftest import ToyModel

Save = Callable[..., Path]
RANK = 2
LAYER = "blocks.0.q"


@pytest.fixture
def base(toy: ToyModel, save: Save) -> TensorSource:
    return open_tensors(save(toy.state_dict(), "base.safetensors"))


def factors(
    layer: str = LAYER, num_out: int = 8, rank: int = RANK, seed: int = 2
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        f"{layer}.lora_A.weight": torch.randn(rank, 8),
        f"{layer}.lora_B.weight": torch.randn(num_out, rank),
    }


def product(adapter: dict[str, Tensor], layer: str = LAYER) -> Tensor:
    return adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]


def merged_weight(base: TensorSource, *specs: LoraSpec, layer: str = LAYER) -> Tensor:
    return merge_loras(base, specs).read(f"{layer}.weight")


def test_several_adapters_with_weights_add_up(base: TensorSource, save: Save) -> None:
    first, second = factors(), factors(seed=3)
    specs = [
        LoraSpec(save(first, "1.safetensors"), weight=0.8, alpha=1),
        LoraSpec(save(second, "2.pth"), weight=-0.5, alpha=4),
    ]
    expected = base.read(f"{LAYER}.weight") + 0.4 * product(first) - product(second)
    torch.testing.assert_close(merged_weight(base, *specs), expected)


def test_nothing_is_rounded_before_the_end(toy: ToyModel, save: Save) -> None:
    """A change far below bf16's resolution survives in the merged float32 tensor."""
    base = open_tensors(save(toy.bfloat16().state_dict(), "base.safetensors"))
    adapter = {name: tensor * 1e-3 for name, tensor in factors().items()}
    merged = merged_weight(base, LoraSpec(save(adapter), alpha=RANK))
    assert merged.dtype == torch.float32
    change = merged - base.read(f"{LAYER}.weight").float()
    torch.testing.assert_close(change, product(adapter), rtol=0, atol=1e-7)


def test_merged_source_loads_like_a_file(
    base: TensorSource, meta_toy: ToyModel, save: Save
) -> None:
    merged = merge_loras(base, [LoraSpec(save(factors()), alpha=1)])
    load_into(meta_toy, merged, dtype=torch.bfloat16)
    assert torch.equal(meta_toy.blocks[0].q.weight, merged.read(f"{LAYER}.weight").bfloat16())
    assert len(merged.files) == 2


def test_the_adapter_is_not_merged_twice(base: TensorSource, save: Save) -> None:
    """Reading changes neither the base nor the second reading, mapped files included."""
    mapped = open_tensors(base.path, mapped=True)
    merged = merge_loras(mapped, [LoraSpec(save(factors()), alpha=1)])
    first = merged.read(f"{LAYER}.weight")
    assert torch.equal(first, merged.read(f"{LAYER}.weight"))
    assert torch.equal(mapped.read(f"{LAYER}.weight"), base.read(f"{LAYER}.weight"))


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_a_replaced_tensor_follows_the_weight(
    base: TensorSource, save: Save, weight: float
) -> None:
    path = save({"base_model.model.blocks.0.q.bias": torch.ones(8)})
    merged = merge_loras(base, [LoraSpec(path, weight=weight)]).read("blocks.0.q.bias")
    old = base.read("blocks.0.q.bias")
    torch.testing.assert_close(merged, old + weight * (1 - old))


def assert_scale(base: TensorSource, spec: LoraSpec, scale: float) -> None:
    adapter = open_tensors(spec.path)
    a, b = (adapter.read(f"{LAYER}.lora_{side}.weight") for side in "AB")
    expected = base.read(f"{LAYER}.weight") + scale * b @ a
    torch.testing.assert_close(merged_weight(base, spec), expected)


def test_alpha_is_asked_of_request_tensor_metadata_config_in_this_order(
    base: TensorSource, save: Save, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 2}))
    plain = save(factors())
    assert_scale(base, LoraSpec(plain), 8)
    with_metadata = save(factors(), metadata={"lora_alpha": "6"})
    assert_scale(base, LoraSpec(with_metadata), 3)
    with_tensor = save(
        factors() | {f"{LAYER}.alpha": torch.tensor(4.0)}, metadata={"lora_alpha": "6"}
    )
    assert_scale(base, LoraSpec(with_tensor), 2)
    assert_scale(base, LoraSpec(with_tensor, alpha=2), 1)


def test_the_released_adapter_needs_no_alpha(base: TensorSource, save: Save) -> None:
    assert_scale(base, LoraSpec(save(factors(rank=128), "liveavatar.safetensors")), 0.5)
    assert_scale(base, LoraSpec(save(factors(rank=128), "LiveAvatar (1).safetensors")), 0.5)


@pytest.mark.parametrize(("name", "rank"), [("style", 128), ("style", 2), ("liveavatar", 2)])
def test_alpha_that_nobody_says_is_the_rank(
    base: TensorSource, save: Save, caplog: pytest.LogCaptureFixture, name: str, rank: int
) -> None:
    path = save(factors(rank=rank) | factors("blocks.1.q", rank=rank), f"{name}.safetensors")
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        assert_scale(base, LoraSpec(path), 1.0)
    assert [record.message for record in caplog.records] == [
        f"{name}.safetensors: does not say its alpha, so it is merged at full strength (alpha = "
        f'rank {rank}); if it was trained with another alpha, give it as "{name}.safetensors:1.0:'
        'alpha=N"'
    ]


def test_alpha_that_is_no_number(base: TensorSource, save: Save) -> None:
    with pytest.raises(CheckpointError, match="expected a number for alpha, got 'big'"):
        merge_loras(base, [LoraSpec(save(factors(), metadata={"alpha": "big"}))])


def test_down_and_up_are_a_and_b(base: TensorSource, save: Save) -> None:
    adapter = factors()
    renamed = {
        f"diffusion_model.{LAYER}.lora_down.weight": adapter[f"{LAYER}.lora_A.weight"],
        f"diffusion_model.{LAYER}.lora_up.weight": adapter[f"{LAYER}.lora_B.weight"],
    }
    merged = merged_weight(base, LoraSpec(save(renamed), alpha=2))
    torch.testing.assert_close(merged, base.read(f"{LAYER}.weight") + product(adapter))


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "another model": (factors("layers.0.wq"), r"2 of 2 tensors belong to no layer(?s:.*)layers\.0"),
    "unknown change": (factors() | {f"{LAYER}.gain": torch.ones(8)}, r"not known:\n.*q\.gain"),
    "two adapters in one": (
        factors() | {f"{LAYER}.lora_A.turbo.weight": torch.ones(2, 8)},
        "are the same tensor",
    ),
    "no tensors": ({}, "holds no tensors"),
    "no rank": (
        {f"{LAYER}.lora_A.weight": torch.ones(0, 8), f"{LAYER}.lora_B.weight": torch.ones(8, 0)},
        "has rank 0",
    ),
    "two alphas": (factors() | {f"{LAYER}.alpha": torch.ones(2)}, "expected one number"),
    "alpha without end": (
        factors() | {f"{LAYER}.alpha": torch.tensor(float("inf"))},
        "expected one number",
    ),
    "half a pair": ({f"{LAYER}.lora_A.weight": torch.ones(2, 8)}, "only one of them"),
    "two ranks": (
        factors() | {f"{LAYER}.lora_B.weight": torch.ones(8, 3)},
        "has rank 2, B .* has rank 3",
    ),
    "another size": (
        factors() | {f"{LAYER}.lora_A.weight": torch.ones(2, 9)},
        r"expected A \[rank, 8\] and B \[8, rank\], got A \[2, 9\]",
    ),
    "not a matrix": (factors("blocks.0.norm"), "only linear layers and convolutions"),
    "replaced with another size": (
        {"text_embedding.bias": torch.ones(4)},
        r"shape \[8\], got \[4\]",
    ),
    "spelled twice": (
        factors() | {f"{LAYER}.lora_A.default.weight": torch.ones(2, 8)},
        "are the same tensor",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_adapters_that_do_not_fit(base: TensorSource, save: Save, kind: str) -> None:
    adapter, said = BAD[kind]
    path = save(adapter)
    with pytest.raises(CheckpointError, match=said) as caught:
        merge_loras(base, [LoraSpec(path)])
    assert str(path) in str(caught.value)


def test_a_quantised_base_is_refused(toy: ToyModel, save: Save) -> None:
    state = toy.state_dict()
    state[f"{LAYER}.weight"] = state[f"{LAYER}.weight"].to(torch.float8_e4m3fn)
    base = open_tensors(save(state, "base.safetensors"))
    with pytest.raises(CheckpointError, match="quantised"):
        merge_loras(base, [LoraSpec(save(factors()), alpha=1)])


def test_no_adapters_is_the_base_itself(base: TensorSource) -> None:
    assert merge_loras(base, []) is base


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a.safetensors", LoraSpec(Path("a.safetensors"))),
        ("d/a.safetensors:0.8", LoraSpec(Path("d/a.safetensors"), 0.8)),
        ("C:/a.safetensors", LoraSpec(Path("C:/a.safetensors"))),
        ("C:/a.safetensors:-1", LoraSpec(Path("C:/a.safetensors"), -1.0)),
        ("a:0.5:alpha=32", LoraSpec(Path("a"), 0.5, 32.0)),
        ("a:alpha=32", LoraSpec(Path("a"), 1.0, 32.0)),
    ],
)
def test_parse(text: str, spec: LoraSpec) -> None:
    assert parse_lora(text) == spec


@pytest.mark.parametrize(
    "text", ["", "a:1.2.3", "a:alpha=big", "a:alpha=", "a:nan:alpha=x", "a:1e999", "a:alpha=inf"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_lora(text)


@given(st.floats(-10, 10), st.floats(0.5, 512))
def test_parse_reads_any_number_back(weight: float, alpha: float) -> None:
    assert parse_lora(f"some/path:{weight}:alpha={alpha}") == LoraSpec(
        Path("some/path"), weight, alpha
    )
