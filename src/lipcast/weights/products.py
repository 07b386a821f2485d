"""Products that multiply stored weights as they are, where a GPU has kernels for them.

Not every GPU, and on some GPUs not every shape, has a kernel for a format, and only a trial tells: the
formats (`fp8`, `fp4`) try the sizes of a model when it is loaded, and `DirectProducts` gives up a shape
that is refused later. The layer then multiplies by the dequantised weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from lipcast.env import logger
from lipcast.models.quant_formats import Rows, StoredWeight

_log = logger("weights.products")

TRIAL_ROWS = (15, 48, 512)
"""Rows of a trial: the audio tokens of a block, a picture of 64×64, a prompt."""

ScaledProduct = Callable[..., Tensor]
"""PyTorch's product of scaled numbers, or what a test puts in its place."""
StoredLinear = Callable[[Rows, StoredWeight, "Tensor | None"], Tensor]
"""x [..., in], a weight and a bias to [..., out]."""
LayerSize = tuple[int, int]
"""Inputs and outputs of a linear layer."""
ProductShape = tuple[int, int, int]
"""Rows, inputs and outputs of a product."""


class ProductSupport(Protocol):
    """Which products a device has for the layers of a model."""

    def multiplies(self, size: LayerSize) -> bool:
        """Return whether layers of this size are multiplied as they are stored."""
        ...


FindSupport = Callable[[torch.device, Iterable[LayerSize]], ProductSupport]
"""Try a device on the sizes of a model's layers."""


class DirectProducts:
    """The products of the layers of one module, and the shapes that were refused."""

    def __init__(self, name: str, multiply: StoredLinear) -> None:
        """`name`: of the format, for messages. `multiply` raises RuntimeError without a kernel."""
        self._name, self._multiply = name, multiply
        self._refused: set[ProductShape] = set()

    @property
    def refused(self) -> frozenset[ProductShape]:
        """The shapes that this device has no kernel for, as far as they were met."""
        return frozenset(self._refused)

    def linear(self, x: Rows, weight: StoredWeight, bias: Tensor | None) -> Tensor | None:
        """Return x times the weight plus bias, or None for a shape that has no kernel here."""
        shape = (num_rows(x), weight.num_in, weight.numbers.shape[0])
        if shape in self._refused:
            return None
        try:
            return self._multiply(x, weight, bias)
        except (RuntimeError, ValueError) as error:
            if not is_refusal(error):
                raise
            self._refused.add(shape)
            _log.warning(
                "%s: this GPU has no kernel for %d rows, %d inputs and %d outputs (%s); "
                "such products use dequantised weights from now on, which is slower",
                self._name,
                *shape,
                str(error).strip().partition("\n")[0],
            )
            return None


def num_rows(x: Rows) -> int:
    """Return the rows of an input [..., D] in any form."""
    numbers = x if isinstance(x, Tensor) else x.numbers
    return numbers.numel() // numbers.shape[-1]


def is_refusal(error: RuntimeError | ValueError) -> bool:
    """Return whether an error means "no kernel", not "out of memory" or "the GPU failed"."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return False
    text = str(error)
    return "ALLOC_FAILED" not in text and "out of memory" not in text


def runs(trial: Callable[[], object]) -> bool:
    """Return whether a trial finds a kernel."""
    try:
        trial()
    except (AttributeError, TypeError):  # this PyTorch has no such product
        return False
    except (RuntimeError, ValueError) as error:
        # Too little memory for a trial says nothing about kernels: the product finds out.
        return not is_refusal(error)
    return True
