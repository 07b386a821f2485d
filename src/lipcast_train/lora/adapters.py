"""Adapters beside the linear layers of a transformer: y = W x + alpha / rank · B A x.

Input: a frozen transformer, which of its layers are adapted, a seed. Output: the same transformer, in which
each such layer is an `AdaptedLinear`, and the adapters by the layer's name. B is zero at first, so that the
model computes what it did. Adapters are float32; products run in the dtype of the activations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcast.config.models import DiTConfig
from lipcast.errors import UsageError
from lipcast.models.dit import DiT
from lipcast.models.quant_formats import Rows
from lipcast.planning.tensors import Shape, dit_tensors
from lipcast.weights.quant_linear import replace_module

TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "self_attn": r"blocks\.\d+\.self_attn\.[qkvo]",
        "cross_attn": r"blocks\.\d+\.cross_attn\.[qkvo]",
        "ffn": r"blocks\.\d+\.ffn\.[02]",
        "audio": r"audio_injector\.injector\.\d+\.[qkvo]",
    }
)
"""Layers that can be adapted, by name; all of them are those of the published adapter."""


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """The shape of the adapters of one model."""

    rank: int = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(TARGETS)

    @property
    def scale(self) -> float:
        """Factor of B A x."""
        return self.alpha / self.rank


def parse_targets(text: str) -> tuple[str, ...]:
    """Read names of `TARGETS`, separated by commas; raises UsageError."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names:
        raise UsageError(
            f'targets: expected some of {", ".join(TARGETS)}, separated by commas, got "{text}"'
        )
    return tuple(name for name in TARGETS if name in names)


def adapted_layers(config: DiTConfig, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every layer that is adapted, in the order of the checkpoint."""
    pattern = re.compile(rf"({'|'.join(TARGETS[name] for name in targets)})\.weight")
    return {
        name.removesuffix(".weight"): _matrix(shape)
        for name, shape in dit_tensors(config).items()
        if pattern.fullmatch(name)
    }


def _matrix(shape: Shape) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


class AdaptedLinear(nn.Module):
    """A linear layer, plain or stored in fewer bits, with an adapter beside it."""

    def __init__(
        self,
        base: nn.Module,
        size: tuple[int, int],
        options: AdapterOptions,
        *,
        device: torch.device,
    ) -> None:
        super().__init__()
        num_out, num_in = size
        self.base = base
        self.scale = options.scale
        self.lora_A = nn.Parameter(torch.zeros(options.rank, num_in, device=device))
        self.lora_B = nn.Parameter(torch.zeros(num_out, options.rank, device=device))

    def forward(self, x: Rows) -> Tensor:
        assert isinstance(x, Tensor), "8-bit rows are for products without a gradient"
        plain: Tensor = self.base(x)
        inner = functional.linear(x, self.lora_A.to(x.dtype))
        return plain + functional.linear(inner, (self.scale * self.lora_B).to(x.dtype))


def add_adapters(model: DiT, options: AdapterOptions, *, seed: int) -> dict[str, AdaptedLinear]:
    """Put an adapter beside every target layer; return them by the layer's name.

    A is drawn as the weights of a linear layer are, from a generator of the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for layer, size in adapted_layers(model.config, options.targets).items():
        adapted = AdaptedLinear(model.get_submodule(layer), size, options, device=model.device)
        bound = 1 / math.sqrt(size[1])
        drawn = torch.rand(adapted.lora_A.shape, generator=generator).mul_(2 * bound).sub_(bound)
        with torch.no_grad():
            adapted.lora_A.copy_(drawn)
        replace_module(model, layer, adapted)
        adapters[layer] = adapted
    return adapters


def adapter_tensors(adapters: Mapping[str, AdaptedLinear]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trained tensors under the names of the published adapter."""
    for layer, adapted in adapters.items():
        yield f"{PREFIX}{layer}.lora_A.default.weight", adapted.lora_A
        yield f"{PREFIX}{layer}.lora_B.default.weight", adapted.lora_B


PREFIX = "base_model.model."
"""Before every name, as peft writes it; the public implementation reads no other names."""
