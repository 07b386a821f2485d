"""Linear layers whose weight is stored quantised; they replace `nn.Linear` from outside.

Inputs: a module whose linear layers have their official names, and which of them to replace.
Output: the same module with `QuantLinear`s in their places. The parts of a weight are buffers of
the layer (`qweight`, `scale`, ...), so a state dict, a stream of tensors and a copy to a device see
them as they see any other tensor. Casting such a module to another dtype would destroy it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lipcast.errors import CheckpointError
from lipcast.models.kernels.plain import Kernels
from lipcast.models.layers import side_by_side
from lipcast.models.quant_formats import Rows, StoredWeight
from lipcast.weights.fp8 import Fp8Products, LayerSize, fp8_support
from lipcast.weights.schemes import Scheme, scheme_of, stored_weight
from lipcast.weights.source import QWEIGHT, TensorSource


class QuantLinear(nn.Module):
    """y = x Wᵀ + b, W stored by `scheme`; how it is read for the product is `kernels`' matter.

    With `fp8_products` it multiplies 8-bit floats directly, where the shape has a kernel;
    activations are then quantised per token. `dtype` is that of `weight`.
    """

    def __init__(self, linear: nn.Linear, scheme: Scheme, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scheme, self.dtype = scheme, dtype
        self.bias = linear.bias
        self.fp8_products: Fp8Products | None = None
        self.kernels = Kernels()
        shapes = scheme.part_shapes(self.out_features, self.in_features)
        self._part_names = tuple(shapes)
        for name, (shape, part_dtype) in shapes.items():
            empty = torch.empty(shape, dtype=part_dtype, device=linear.weight.device)
            self.register_buffer(name, empty)

    @property
    def fp8_matmul(self) -> bool:
        """Whether the layer multiplies 8-bit floats directly."""
        return self.fp8_products is not None

    def fill(self, parts: Mapping[str, Tensor]) -> None:
        """Take over the parts that the scheme made."""
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Rows) -> Tensor:
        weight = stored_weight(self._parts())
        product = self._direct(x, weight, self.bias)
        if product is not None:
            return product
        return self.kernels.linear(_restored(x), weight, self.bias)

    def joined_product(self, layers: Sequence[nn.Module], x: Rows) -> Tensor | None:
        """Return what these layers, of which this is the first, make of x, side by side.

        None where their parts do not lie side by side in memory, or there is no product of 8-bit floats
        of that size.
        """
        alike = [layer for layer in layers if self._is_alike(layer)]
        each = [layer._parts() for layer in alike if isinstance(layer, QuantLinear)]
        if len(each) < len(layers):
            return None
        parts = {name: side_by_side([p[name] for p in each]) for name in self._part_names}
        bias = side_by_side([layer.bias for layer in layers])  # type: ignore[misc]
        found = {name: part for name, part in parts.items() if part is not None}
        if len(found) < len(parts) or bias is None:
            return None
        weight = stored_weight(found)
        if self.fp8_products is not None:
            return self._direct(x, weight, bias)
        return self.kernels.linear(_restored(x), weight, bias)

    def _is_alike(self, other: nn.Module) -> bool:
        return (
            isinstance(other, QuantLinear)
            and other.scheme is self.scheme
            and other.fp8_matmul is self.fp8_matmul
            and other.bias is not None
        )

    def _direct(self, x: Rows, weight: StoredWeight, bias: Tensor | None) -> Tensor | None:
        """Multiply 8-bit floats as they are; None where that is not possible."""
        if self.fp8_products is None:
            return None
        return self.fp8_products.linear(x, weight.numbers, weight.scale, bias)

    @property
    def weight(self) -> Tensor:
        """The dequantised weight [out, in], made anew at every access."""
        return self.scheme.dequantise(self._parts(), self.dtype)

    def _parts(self) -> dict[str, Tensor]:
        parts = {name: getattr(self, name) for name in self._part_names}
        assert parts[QWEIGHT].dtype == self.scheme.qweight_dtype, "a quantised layer was cast"
        return parts

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.scheme.precision}"


def _restored(x: Rows) -> Tensor:
    return x if isinstance(x, Tensor) else x.restore()


def quantised_layers(source: TensorSource) -> Iterator[tuple[str, Scheme]]:
    """(layer, scheme) of every quantised layer; raises CheckpointError for an unknown scheme."""
    for name, info in source.infos.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != QWEIGHT:
            continue
        scheme = scheme_of(info.dtype)
        if scheme is None:
            raise CheckpointError(
                f"{source.path}: {name} has dtype {info.dtype}, which no known quantisation uses; "
                "convert the checkpoint again with this version"
            )
        yield layer, scheme


def replace_linears(
    module: nn.Module, layers: Iterable[tuple[str, Scheme]], *, dtype: torch.dtype
) -> None:
    """Put an empty `QuantLinear` in the place of each named `nn.Linear`.

    Raises CheckpointError for a name that is no linear layer of the module.
    """
    modules: Mapping[str, nn.Module] = dict(module.named_modules())
    for layer, scheme in layers:
        linear = modules.get(layer)
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(
                f"expected {layer} to be a linear layer of {type(module).__name__}, found "
                f"{type(linear).__name__}; the file's quantised layers belong to another model"
            )
        replace_module(module, layer, QuantLinear(linear, scheme, dtype=dtype))


def replace_module(module: nn.Module, name: str, new: nn.Module) -> None:
    """Make `new` the submodule `name` of `module`."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, new)


def use_fp8_matmul(module: nn.Module, *, enabled: bool) -> None:
    """Switch the direct 8-bit product of all fp8 layers on or off.

    It stays off where a side is no multiple of 16, which the matrix units need.
    """
    products = Fp8Products() if enabled else None
    for layer, size in _fp8_layers(module):
        layer.fp8_products = products if has_whole_tiles(size) else None


def use_fp8_of_device(module: nn.Module, device: torch.device) -> None:
    """Multiply 8-bit floats directly in every fp8 layer whose size this device has a kernel for."""
    layers = [(layer, size) for layer, size in _fp8_layers(module) if has_whole_tiles(size)]
    support = fp8_support(device, [size for _, size in layers])
    products = Fp8Products()
    for layer, size in layers:
        layer.fp8_products = products if support.multiplies(size) else None


def _fp8_layers(module: nn.Module) -> Iterator[tuple[QuantLinear, LayerSize]]:
    for layer in module.modules():
        if isinstance(layer, QuantLinear) and layer.scheme.precision == "fp8":
            yield layer, (layer.in_features, layer.out_features)


def has_whole_tiles(size: LayerSize) -> bool:
    """Return whether the matrix units can multiply 8-bit floats of this size."""
    return all(side % 16 == 0 for side in size)
