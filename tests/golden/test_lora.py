"""Case 10: an adapter merged into the base weights, against the reference's own merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lipcast.weights.files import open_tensors
from lipcast.weights.lora import LoraSpec, MergedSource, merge_loras

TOLERANCE = 1e-6
PREFIX = "base_model.model."


@pytest.fixture
def case(golden: Callable[[str], Any]) -> Any:
    return golden("case10")


@pytest.fixture
def base(case: Any, golden: Callable[[str], Any], tmp_path: Path) -> Path:
    """The base weights alone, as a checkpoint file."""
    weights = golden(case.meta["weights"].removesuffix(".safetensors")).weights()
    path = tmp_path / "base.safetensors"
    save_file(weights, path)
    return path


def merge(
    case: Any, base: Path, adapter: dict[str, Tensor], *, alpha_in_file: bool = False
) -> MergedSource:
    path = base.parent / "adapter.safetensors"
    alpha = case.meta["alpha"]
    save_file(adapter, path, {"lora_alpha": str(alpha)} if alpha_in_file else None)
    spec = LoraSpec(path, alpha=None if alpha_in_file else alpha)
    merged = merge_loras(open_tensors(base), [spec])
    assert isinstance(merged, MergedSource)
    return merged


def assert_merged(case: Any, merged: MergedSource) -> None:
    for name, expected in case.under("outputs/merged/").items():
        assert torch.allclose(merged.read(name), expected, rtol=0, atol=TOLERANCE), name


@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("default", [".default", ""])
def test_every_spelling_of_the_names_merges(
    case: Any, base: Path, prefix: str, default: str
) -> None:
    adapter = {
        prefix + name.removeprefix(PREFIX).replace(".default", default): tensor
        for name, tensor in case.under("inputs/lora/").items()
    }
    merged = merge(case, base, adapter)
    assert merged.changed == {f"{layer}.weight" for layer in case.meta["targets"]}
    assert_merged(case, merged)


def test_alpha_from_the_file(case: Any, base: Path) -> None:
    assert_merged(case, merge(case, base, case.under("inputs/lora/"), alpha_in_file=True))


def test_a_plain_tensor_replaces_the_base(case: Any, base: Path) -> None:
    extra = case.under("inputs/extra/")
    merged = merge(case, base, case.under("inputs/lora/") | extra)
    for name, expected in case.under("outputs/with_extra/").items():
        assert torch.equal(merged.read(name), expected), name
    assert_merged(case, merged)


def test_what_is_not_adapted_is_untouched(case: Any, base: Path) -> None:
    merged, original = merge(case, base, case.under("inputs/lora/")), open_tensors(base)
    untouched = set(original.infos) - merged.changed
    assert untouched
    for name in untouched:
        assert torch.equal(merged.read(name), original.read(name)), name
