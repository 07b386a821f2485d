"""A transformer whose own weights stay as they are, ready to give gradients to what is added to it.

Its weights may be stored in 8 or 4 bits. Its layers keep their inputs, and run again for their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lipcast.models.dit import DiT, apply_kernels
from lipcast.models.kernels.plain import Kernels
from lipcast.models.quant_formats import StoredWeight
from lipcast.weights.quant_linear import use_direct_products


def freeze(model: DiT, *, recompute: bool = True) -> None:
    """Make `model` compute by operations that have gradients, and want none for its weights.

    `recompute`: every layer runs again for its gradients, instead of keeping what it computed.
    """
    model.requires_grad_(False)
    use_direct_products(model, enabled=False)  # they have no gradient
    apply_kernels(model, FrozenKernels())
    if recompute:
        for block in model.layers:
            _recompute(block, "forward")
            _recompute(block.cross_attn, "keys_values")
        _recompute(model.audio_injector, "forward")


class FrozenKernels(Kernels):
    """PyTorch's operators, and products with stored weights whose gradient does not keep them restored."""

    def linear(self, x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor:
        """Return x times a stored weight plus a bias, with a gradient for x."""
        parts = weight.numbers, weight.scale, weight.minimum, weight.tensor_scale
        product: Tensor = _StoredProduct.apply(x, *parts)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias.to(product.dtype)


class _StoredProduct(torch.autograd.Function):
    """x Wᵀ; W is restored for the product, and once more for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Any) -> Tensor:
        ctx.save_for_backward(*parts)
        return functional.linear(x, StoredWeight(*parts).restore(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Once: a layer that is run again gives each of its tensors back one time.
        grad, parts = grads[0], ctx.saved_tensors
        return grad @ StoredWeight(*parts).restore(grad.dtype), *(None for _ in parts)


def _recompute(module: nn.Module, name: str) -> None:
    """Keep only the inputs of a method, and call it again when its gradients are wanted."""
    method: Callable[..., Any] = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(method, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    module.__dict__[name] = call
