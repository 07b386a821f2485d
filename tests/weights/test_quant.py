"""Quantised linear layers: what is stored, how wrong it is, and where it is not done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcast.config.precision import StoredPrecision
from lipcast.errors import CheckpointError
from lipcast.weights import quant
from lipcast.weights.files import open_tensors
from lipcast.weights.fp8 import has_fp8_matmul, linear_row_wise
from lipcast.weights.load import load_into
from lipcast.weights.lora import LoraSpec, merge_loras
from lipcast.weights.quant import QuantisedSource, kept_because, quantise_layer, quantised
from lipcast.weights.quant_linear import QuantLinear, use_direct_products
from lipcast.weights.schemes import PLAIN_DTYPES, SCHEMES
from lipcast.weights.source import RenamedSource, TensorInfo
from profiles import examples

from .conftest import TINY, ToyModel

Save = Callable[..., Path]
QUANTISED: tuple[StoredPrecision, ...] = ("fp8", "int8", "int4")
ALL: tuple[StoredPrecision, ...] = (*QUANTISED, "nvfp4")
"""NVFP4 stores rows of whole blocks of 16 only, which the toy model does not have."""
MAX_ERROR = {"fp8": 0.027, "int8": 0.009, "int4": 0.087, "nvfp4": 0.089}
"""Relative weight error on normally distributed weights of width 512."""


def relative(approximate: Tensor, exact: Tensor) -> float:
    return float(((approximate - exact).norm() / exact.norm()).detach())


def normal(num_out: int, num_in: int, seed: int = 7) -> Tensor:
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("precision", ALL)
def test_error_on_normal_weights(precision: StoredPrecision) -> None:
    weight, scheme = normal(64, 512), SCHEMES[precision]
    error = relative(scheme.dequantise(scheme.quantise(weight), torch.float32), weight)
    assert MAX_ERROR[precision] * 0.8 < error < MAX_ERROR[precision]


@pytest.mark.parametrize("precision", QUANTISED)
@settings(max_examples=examples(25), deadline=None)
@given(
    num_out=st.integers(1, 5),
    half_in=st.integers(1, 40),
    power=st.integers(-12, 12),
    kind=st.sampled_from(["normal", "zero", "constant", "outlier"]),
)
def test_parts_have_the_promised_shape_and_bounded_error(
    precision: StoredPrecision, num_out: int, half_in: int, power: int, kind: str
) -> None:
    scheme, num_in = SCHEMES[precision], 2 * half_in
    weight = {
        "normal": normal(num_out, num_in),
        "zero": torch.zeros(num_out, num_in),
        "constant": torch.full((num_out, num_in), -0.3),
        "outlier": normal(num_out, num_in) + torch.eye(num_out, num_in),
    }[kind] * 10.0**power
    parts = scheme.quantise(weight)
    promised = scheme.part_shapes(num_out, num_in)
    assert {n: (tuple(p.shape), p.dtype) for n, p in parts.items()} == promised
    restored = scheme.dequantise(parts, torch.float32)
    assert restored.isfinite().all()
    assert (restored - weight).abs().max() <= 0.08 * weight.abs().max() + 1e-11


def test_rows_do_not_influence_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(10, 128)
    for precision in ALL:
        whole, report = quantise_layer("a", weight, SCHEMES[precision])
        monkeypatch.setattr(quant, "PIECE_ELEMENTS", 400)
        pieces, same_report = quantise_layer("a", weight, SCHEMES[precision])
        monkeypatch.undo()
        for name, part in whole.items():
            assert torch.equal(part.view(torch.uint8), pieces[name].view(torch.uint8)), name
        assert report == same_report


def test_int4_takes_four_and_a_half_bits() -> None:
    parts = SCHEMES["int4"].quantise(normal(8, 640))
    assert sum(part.nbytes for part in parts.values()) * 8 == 4.5 * 8 * 640


@pytest.mark.parametrize("precision", ALL)
def test_report_is_the_measured_error(precision: StoredPrecision) -> None:
    weight, scheme = normal(48, 256), SCHEMES[precision]
    parts, report = quantise_layer("a.b", weight, scheme)
    error = relative(scheme.dequantise(parts, torch.float32), weight)
    assert report.layer == "a.b"
    assert report.weight_error == pytest.approx(error, rel=1e-3)
    # Random activations do not know the error's direction; fp8 rounds them, too.
    expected = error * (2**0.5 if precision in {"fp8", "nvfp4"} else 1)
    assert report.output_error == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("precision", ALL)
def test_a_layer_computes_with_its_dequantised_weight(precision: StoredPrecision) -> None:
    linear = nn.Linear(128, 32)
    layer = QuantLinear(linear, SCHEMES[precision], dtype=torch.float32)
    layer.fill(SCHEMES[precision].quantise(linear.weight.detach()))
    x = torch.randn(2, 5, 128)
    expected = nn.functional.linear(x, layer.weight, linear.bias)
    torch.testing.assert_close(layer(x), expected)
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), expected) < 0.01


def test_direct_fp8_product_is_near_the_dequantised_one() -> None:
    linear = nn.Linear(96, 64)
    layer = QuantLinear(linear, SCHEMES["fp8"], dtype=torch.bfloat16)
    layer.fill(SCHEMES["fp8"].quantise(linear.weight.detach()))
    x = torch.randn(3, 7, 96, dtype=torch.bfloat16)
    x[0, 0] = 0
    slow = layer(x)
    use_direct_products(layer, enabled=True)
    fast = layer(x)
    assert fast.shape == slow.shape
    assert not torch.equal(fast, slow)
    assert relative(fast.float(), slow.float()) < 0.035  # activations have 3 bits of mantissa
    use_direct_products(layer, enabled=False)
    assert torch.equal(layer(x), slow)


def test_direct_product_without_bias_keeps_the_dtype() -> None:
    scheme, weight = SCHEMES["fp8"], normal(16, 32)
    parts = scheme.quantise(weight)
    x = torch.randn(4, 32)
    y = linear_row_wise(x, parts["qweight"], parts["scale"], None)
    assert y.dtype == torch.float32
    assert relative(y, x @ weight.t()) < 0.06


def test_odd_sizes_never_take_the_direct_product() -> None:
    layer = QuantLinear(nn.Linear(24, 32), SCHEMES["fp8"], dtype=torch.float32)
    use_direct_products(layer, enabled=True)
    assert not layer.multiplies
    assert not has_fp8_matmul(torch.device("cpu"))


def test_a_cast_layer_is_caught() -> None:
    linear = nn.Linear(32, 32)
    layer = QuantLinear(linear, SCHEMES["fp8"], dtype=torch.float32)
    layer.fill(SCHEMES["fp8"].quantise(linear.weight.detach()))
    with pytest.raises(AssertionError, match="was cast"):
        layer.to(torch.float32)(torch.ones(1, 32))


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_quantised_stream_loads_into_a_plain_module(
    toy: ToyModel, meta_toy: ToyModel, save: Save, precision: StoredPrecision
) -> None:
    source = quantised(open_tensors(save(toy.state_dict())), precision)
    load_into(meta_toy, source, dtype=torch.float32)
    assert isinstance(meta_toy.blocks[0].q, QuantLinear) and isinstance(source, QuantisedSource)
    assert type(meta_toy.text_embedding) is nn.Linear
    assert set(source.reports) == {f"blocks.{i}.{n}" for i in range(3) for n in "qo"}
    x, scheme = torch.randn(4, 8), SCHEMES[precision]
    for left, right in zip(meta_toy.blocks, toy.blocks, strict=True):
        for layer in ("q", "o"):
            linear = getattr(right, layer)
            parts = scheme.quantise(linear.weight.detach())
            exact = scheme.dequantise(parts, torch.float32) @ x.t()
            got = getattr(left, layer)(x)
            torch.testing.assert_close(got, exact.t() + linear.bias.bfloat16().float())


@pytest.mark.parametrize("precision", QUANTISED)
def test_loading_makes_the_same_parts_on_its_device(
    toy: ToyModel, save: Save, precision: StoredPrecision
) -> None:
    base = open_tensors(save(toy.state_dict()))
    converted = quantised(base, precision)
    loaded = quantised(base, precision, device=torch.device("cpu"))
    assert loaded.infos == converted.infos
    for name, tensor in loaded:
        assert torch.equal(tensor.view(torch.uint8), converted.read(name).view(torch.uint8)), name
    assert isinstance(converted, QuantisedSource) and converted.reports
    assert not getattr(loaded, "reports", None)
    elsewhere = quantised(base, precision, device=torch.device("meta"))
    made = elsewhere.infos.keys() - base.infos.keys()
    assert made and all(elsewhere.read(name).is_meta for name in made)


def test_high_precision_tensors_are_sixteen_bit(toy: ToyModel, save: Save) -> None:
    state = toy.state_dict()
    state["text_embedding.bias"] = state["text_embedding.bias"].half()
    state["count"] = torch.arange(3)
    source = quantised(open_tensors(save(state)), "int8")
    assert source.infos["text_embedding.weight"].dtype == torch.bfloat16
    assert source.infos["text_embedding.bias"].dtype == torch.float16
    assert torch.equal(source.read("count"), state["count"])
    for name, tensor in source:
        assert tensor.dtype == source.infos[name].dtype
        assert tuple(tensor.shape) == source.infos[name].shape


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_plain_precisions_only_cast(toy: ToyModel, save: Save, precision: StoredPrecision) -> None:
    base = open_tensors(save(toy.state_dict() | {"count": torch.arange(3)}))
    for name, tensor in quantised(base, precision):
        expected = base.read(name)
        if name != "count":
            expected = expected.to(PLAIN_DTYPES[precision])
        assert torch.equal(tensor, expected)


def test_parts_may_be_read_in_any_order(toy: ToyModel, save: Save) -> None:
    source = quantised(open_tensors(save(toy.state_dict())), "int4")
    forward = dict(source)
    for name in reversed(source.infos):
        assert torch.equal(source.read(name), forward[name]), name


def test_adapters_are_merged_before_quantising(toy: ToyModel, save: Save) -> None:
    base = open_tensors(save(toy.state_dict(), "base.safetensors"))
    adapter = {
        "blocks.0.q.lora_A.weight": torch.ones(1, 8),
        "blocks.0.q.lora_B.weight": torch.ones(8, 1),
    }
    merged = merge_loras(base, [LoraSpec(save(adapter), alpha=1)])
    source = quantised(merged, "fp8")
    parts = {n: source.read(f"blocks.0.q.{n}") for n in ("qweight", "scale")}
    exact = base.read("blocks.0.q.weight") + 1
    assert relative(SCHEMES["fp8"].dequantise(parts, torch.float32), exact) < 0.04
    assert source.files == merged.files


def test_parts_are_renamed_with_their_weight(toy: ToyModel, save: Save) -> None:
    source = quantised(open_tensors(save(toy.state_dict())), "int4")

    def rename(name: str) -> str:
        assert name in toy.state_dict(), "only official names are asked for"
        return name.replace("blocks", "stack.layer")

    renamed = RenamedSource(source, rename)
    for part in ("qweight", "scale", "minimum", "bias"):
        old, new = (f"{prefix}.1.q.{part}" for prefix in ("blocks", "stack.layer"))
        assert torch.equal(renamed.read(new), source.read(old))
    assert "stack.layer.1.norm.weight" in renamed.infos


def test_quantising_twice_is_refused(toy: ToyModel, save: Save) -> None:
    first = quantised(open_tensors(save(toy.state_dict())), "fp8")
    path = save(dict(first), "q.safetensors")
    with pytest.raises(CheckpointError, match="quantised already"):
        quantised(open_tensors(path), "int4")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"blocks.0.norm.qweight": torch.zeros(8, 8, dtype=torch.int8)}, "found LayerNorm"),
        ({"blocks.9.q.qweight": torch.zeros(8, 8, dtype=torch.int8)}, "found NoneType"),
        ({"blocks.0.q.qweight": torch.zeros(8, 8, dtype=torch.int16)}, "no known quantisation"),
    ],
)
def test_quantised_layers_of_another_model(
    meta_toy: ToyModel, save: Save, tensors: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        load_into(meta_toy, open_tensors(save(tensors)))


def test_the_table_on_every_official_name(official_infos: dict[str, list[TensorInfo]]) -> None:
    """What is quantised is the matrices of blocks and injectors; what is kept has a reason."""
    dit = official_infos["dit"]
    chosen = [info for info in dit if kept_because(info) is None]
    assert {info.name.split(".")[0] for info in chosen} == {"blocks", "audio_injector"}
    assert len(chosen) == 40 * 10 + 12 * 5
    share = sum(i.num_elements for i in chosen) / sum(i.num_elements for i in dit)
    assert 0.975 < share < 0.985
    text = [info for info in official_infos["umt5-xxl"] if kept_because(info) is None]
    assert len(text) == 24 * 7


def test_embedded_model_in_every_precision() -> None:
    """Errors of the trained tiny model; the largest of any layer stays in bounds."""
    base = open_tensors(TINY / "diffusion_pytorch_model.safetensors")
    for precision in ALL:
        source = quantised(base, precision)
        assert isinstance(source, QuantisedSource)
        for name in source.infos:
            source.read(name)
        worst = max(report.weight_error for report in source.reports.values())
        assert len(source.reports) == 6 * 10 + 3 * 5
        assert worst < 1.5 * MAX_ERROR[precision]
