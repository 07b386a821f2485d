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

from lipcast.config.precision import StoredPrecision
from lipcast.env import logger
from lipcast.errors import CheckpointError
from lipcast.models.kernels.plain import Kernels
from lipcast.models.layers import side_by_side
from lipcast.models.quant_formats import Rows, StoredWeight
from lipcast.weights.fp4 import fp4_support, linear_fp4
from lipcast.weights.fp8 import fp8_support, linear_fp8
from lipcast.weights.products import DirectProducts, FindSupport, LayerSize, StoredLinear
from lipcast.weights.schemes import SCHEMES, Scheme, scheme_of, stored_weight
from lipcast.weights.source import QWEIGHT, TensorSource

_log = logger("weights.quant_linear")
_PART_NAMES = sorted({name for scheme in SCHEMES.values() for name in scheme.part_shapes(16, 16)})


class QuantLinear(nn.Module):
    """y = x Wᵀ + b, W stored by `scheme`; how it is read for the product is `kernels`' matter.

    With `products` it multiplies 8-bit or 4-bit floats directly, where the shape has a kernel;
    activations are then quantised, too. `dtype` is that of `weight`.
    """

    def __init__(self, linear: nn.Linear, scheme: Scheme, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scheme, self.dtype = scheme, dtype
        self.bias = linear.bias
        self.products: DirectProducts | None = None
        self.kernels = Kernels()
        shapes = scheme.part_shapes(self.out_features, self.in_features)
        self._part_names = tuple(shapes)
        for name, (shape, part_dtype) in shapes.items():
            empty = torch.empty(shape, dtype=part_dtype, device=linear.weight.device)
            self.register_buffer(name, empty)

    @property
    def multiplies(self) -> StoredPrecision | None:
        """Format of the numbers that the layer multiplies directly; None: it dequantises its weight."""
        return None if self.products is None else self.scheme.precision

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

        None where their parts do not lie side by side in memory, where the rows of each share a scale, or
        where there is no direct product of that size.
        """
        if self.scheme.has_shared_parts:
            return None
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
        if self.products is not None:
            return self._direct(x, weight, bias)
        return self.kernels.linear(_restored(x), weight, bias)

    def _is_alike(self, other: nn.Module) -> bool:
        return (
            isinstance(other, QuantLinear)
            and other.scheme is self.scheme
            and other.multiplies == self.multiplies
            and other.bias is not None
        )

    def _direct(self, x: Rows, weight: StoredWeight, bias: Tensor | None) -> Tensor | None:
        """Multiply the stored numbers as they are; None where that is not possible."""
        return None if self.products is None else self.products.linear(x, weight, bias)

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
        parts = [part for part in _PART_NAMES if f"{layer}.{part}" in source.infos]
        scheme = scheme_of(info.dtype, parts)
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


_PRODUCTS: Mapping[StoredPrecision, StoredLinear] = {"fp8": linear_fp8, "nvfp4": linear_fp4}
_SUPPORT: dict[StoredPrecision, FindSupport] = {"fp8": fp8_support, "nvfp4": fp4_support}
_TILES: Mapping[StoredPrecision, tuple[int, int]] = {"fp8": (16, 16), "nvfp4": (32, 16)}
"""Inputs and outputs that matrix units multiply whole tiles of: 16 bytes along a row, 16 rows."""


def use_direct_products(module: nn.Module, *, enabled: bool) -> None:
    """Switch the direct product of all fp8 and NVFP4 layers on or off.

    It stays off where a side is no multiple of the tiles of the matrix units.
    """
    for precision in _PRODUCTS:
        products = _products(precision) if enabled else None
        for layer, size in _layers_of(module, precision):
            layer.products = products if has_whole_tiles(size, precision) else None


def use_products_of_device(module: nn.Module, device: torch.device) -> None:
    """Multiply fp8 and NVFP4 numbers directly in every layer whose size this device has a kernel for."""
    for precision in _PRODUCTS:
        layers = list(_layers_of(module, precision))
        whole = [size for _, size in layers if has_whole_tiles(size, precision)]
        if not whole:
            continue
        support, products = _SUPPORT[precision](device, whole), _products(precision)
        multiplied = {size for size in whole if support.multiplies(size)}
        for layer, size in layers:
            layer.products = products if size in multiplied else None
        refused = {size for _, size in layers} - multiplied
        if precision == "nvfp4" and refused and device.type == "cuda":
            _log.warning(
                "nvfp4: %s has no products of such numbers for layers of (inputs, outputs) %s; their "
                "weights are dequantised before use, which is slower. GPUs before Blackwell are faster with "
                "--precision fp8 or int4",
                device,
                ", ".join(map(str, sorted(refused))),
            )


def multiplies_directly(
    device: torch.device, precision: StoredPrecision, layer_sizes: Iterable[LayerSize]
) -> bool:
    """Return whether a device multiplies such weights of all layers with these (inputs, outputs)."""
    sizes = frozenset(size for size in layer_sizes if has_whole_tiles(size, precision))
    support = _SUPPORT[precision](device, sizes)
    return all(support.multiplies(size) for size in sizes or {_TILES[precision]})


def _products(precision: StoredPrecision) -> DirectProducts:
    return DirectProducts(precision, _PRODUCTS[precision])


def _layers_of(
    module: nn.Module, precision: StoredPrecision
) -> Iterator[tuple[QuantLinear, LayerSize]]:
    for layer in module.modules():
        if isinstance(layer, QuantLinear) and layer.scheme.precision == precision:
            yield layer, (layer.in_features, layer.out_features)


def has_whole_tiles(size: LayerSize, precision: StoredPrecision = "fp8") -> bool:
    """Return whether the matrix units can multiply stored numbers of this size."""
    return all(side % tile == 0 for side, tile in zip(size, _TILES[precision], strict=True))
