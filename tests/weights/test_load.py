"""Loading is strict both ways and touches no data before names and shapes agree."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcast
from lipcast.errors import CheckpointError
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into, without_memory

from .conftest import ToyModel

Save = Callable[..., Path]


def test_every_tensor_arrives(toy: ToyModel, meta_toy: ToyModel, save: Save) -> None:
    load_into(meta_toy, open_tensors(save(toy.state_dict())))
    for name, tensor in toy.state_dict().items():
        assert torch.equal(meta_toy.state_dict()[name], tensor), name
    assert not any(p.requires_grad for p in meta_toy.parameters())


def test_parameters_are_cast_and_buffers_keep_their_dtype(
    toy: ToyModel, meta_toy: ToyModel, save: Save
) -> None:
    load_into(meta_toy, open_tensors(save(toy.state_dict(), "m.pth")), dtype=torch.bfloat16)
    assert {p.dtype for p in meta_toy.parameters()} == {torch.bfloat16}
    assert meta_toy.scale.dtype == torch.float32


def test_mapped_tensors_are_not_copied(toy: ToyModel, meta_toy: ToyModel, save: Save) -> None:
    source = open_tensors(save(toy.state_dict()), mapped=True)
    load_into(meta_toy, source)
    name = "blocks.1.o.weight"
    assert meta_toy.state_dict()[name].data_ptr() == source.read(name).data_ptr()


def test_missing_and_unexpected_are_all_listed(
    toy: ToyModel, meta_toy: ToyModel, save: Save
) -> None:
    state = toy.state_dict()
    for number in range(3):
        del state[f"blocks.{number}.norm.bias"]
    del state["scale"]
    path = save(state | {"blocks.7.extra": torch.ones(1)})
    with pytest.raises(CheckpointError) as caught:
        load_into(meta_toy, open_tensors(path))
    text = str(caught.value)
    for part in (str(path), "Missing (4)", "blocks.{0-2}.norm.bias", "scale"):
        assert part in text
    assert "Unexpected (1)" in text
    assert "blocks.7.extra" in text
    assert all(p.is_meta for p in meta_toy.parameters())


def test_shape_mismatch_says_name_expected_and_found(meta_toy: ToyModel, save: Save) -> None:
    state = ToyModel(dim=12).state_dict()
    with pytest.raises(
        CheckpointError, match=r"blocks\.0\.q\.weight: expected shape \[8, 8\], found \[12, 12\]"
    ):
        load_into(meta_toy, open_tensors(save(state)))


def test_integers_are_no_weights(toy: ToyModel, meta_toy: ToyModel, save: Save) -> None:
    state = toy.state_dict() | {"text_embedding.bias": torch.zeros(8, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"text_embedding\.bias: expected torch\.float32"):
        load_into(meta_toy, open_tensors(save(state)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(5, 4)
        self.embed_tokens = nn.Embedding(5, 4)
        self.embed_tokens.weight = self.shared.weight


@pytest.mark.parametrize("stored", [("shared",), ("embed_tokens",), ("shared", "embed_tokens")])
def test_tied_parameters_need_one_name(save: Save, stored: tuple[str, ...]) -> None:
    values = torch.arange(20.0).view(5, 4)
    with without_memory():
        module = Tied()
    load_into(module, open_tensors(save({f"{name}.weight": values for name in stored}, "m.pth")))
    assert torch.equal(module.shared.weight, values)
    assert torch.equal(module.embed_tokens.weight, values)


def test_building_without_memory_loads_no_compiler() -> None:
    """An embedding's initial values would import torch._dynamo on the meta device."""
    program = (
        "import sys, torch\n"
        "from lipcast.config.models import DiTConfig\n"
        "from lipcast.models.dit import DiT\n"
        "from lipcast.weights.load import without_memory\n"
        "with without_memory(): dit = DiT(DiTConfig())\n"
        "assert all(p.is_meta for p in dit.parameters())\n"
        "with without_memory(): assert torch.nn.Linear(2, 2).weight.shape == (2, 2)\n"
        "assert torch.ones(2).fill_(3).tolist() == [3, 3]\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_models_are_built_without_memory_everywhere() -> None:
    """The price came back once, where a merge lost the use of `without_memory`."""
    package = Path(lipcast.__file__).parent
    users = [path for path in package.rglob("*.py") if 'torch.device("meta"):' in path.read_text()]
    assert users == []


def test_one_tensor_is_in_transit_at_a_time(toy: ToyModel, meta_toy: ToyModel, save: Save) -> None:
    """The source is asked for each tensor once, and only after all checks passed."""
    source = open_tensors(save(toy.state_dict()))
    asked: list[str] = []
    read = source.read

    def watched(name: str) -> Tensor:
        asked.append(name)
        return read(name)

    source.read = watched  # type: ignore[method-assign]
    load_into(meta_toy, source)
    assert sorted(asked) == sorted(toy.state_dict())
