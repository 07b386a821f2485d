"""Fill a module that was built on the meta device with the tensors of a source.

Inputs: a module without memory, a `TensorSource`. Output: the same module, every parameter and
buffer in place. Strict: what is missing, what is too much and what has another shape is an error
that lists all of it, before any data is read. One tensor is in transit at a time. Linear layers
that the source has quantised are replaced by layers that can hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lipcast.errors import CheckpointError
from lipcast.weights.quant_linear import quantised_layers, replace_linears, use_products_of_device
from lipcast.weights.source import TensorInfo, TensorSource, summarise_names

_FILLS = frozenset(
    value for name, value in vars(nn.init).items() if name.endswith("_") and callable(value)
) | {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


class _NoFill(TorchFunctionMode):
    """Skip the initial values of tensors that have no memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func in _FILLS:
            target = args[0] if args else kwargs["tensor"]
            if target.is_meta:
                return target
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Make modules inside have shapes but no values: build here, then `load_into`.

    Like `torch.device("meta")`, without its price: the random initial values of an embedding on
    that device load the whole of torch._dynamo, 6 to 11 s of one core.
    """
    with torch.device("meta"), _NoFill():
        yield


def load_into(
    module: nn.Module,
    source: TensorSource,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    place: Callable[[nn.Module], Mapping[str, Tensor | None]] | None = None,
) -> None:
    """Put every tensor of `source` into `module`, which becomes usable on `device`.

    `place` takes charge of the memory: asked once, with the module in its final form, it gives by
    name the tensors to load values into, and None for those that are not to be read now. Binding
    them to the module is its matter then.

    Parameters become `dtype` (None: as stored); buffers keep the dtype that the module declares.
    A parameter that the module has under several names needs to be stored once only. Layers that
    come quantised compute with 8-bit products where `device` can.
    Raises CheckpointError if names or shapes differ, or if a tensor cannot be read.
    """
    device = torch.device(device)
    replace_linears(module, quantised_layers(source), dtype=dtype or torch.bfloat16)
    slots = _slots(module)
    _check_names(slots, source)
    _check_shapes(slots, source)
    if place is not None:
        _load_homes(source, place(module))
        use_products_of_device(module, device)
        return
    for name, tensor in source:
        target = slots[name]
        wanted = dtype if target.is_parameter else target.tensor.dtype
        loaded = tensor.to(device=device, dtype=wanted)
        for alias in target.names:
            _assign(module, alias, loaded, is_parameter=target.is_parameter)
    use_products_of_device(module, device)
    left = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    assert not left, f"a buffer that no checkpoint stores was built on the meta device: {left}"


def _load_homes(source: TensorSource, homes: Mapping[str, Tensor | None]) -> None:
    """Read each tensor into its home, where it has one."""
    for name in source.infos:
        home = homes[name]
        if home is not None:
            home.copy_(source.read(name))


class _Slot:
    """One place for a tensor in the module, with all names that lead to it."""

    def __init__(self, tensor: Tensor, *, is_parameter: bool) -> None:
        self.tensor = tensor
        self.is_parameter = is_parameter
        self.names: list[str] = []


def _slots(module: nn.Module) -> dict[str, _Slot]:
    """Return a slot for each name of the module's state dict; tied parameters share one."""
    stored = module.state_dict(keep_vars=True)
    by_identity: dict[int, _Slot] = {}
    slots = {}
    for name, tensor in stored.items():
        new = _Slot(tensor, is_parameter=isinstance(tensor, nn.Parameter))
        slot = by_identity.setdefault(id(tensor), new)
        slot.names.append(name)
        slots[name] = slot
    return slots


def _check_names(slots: Mapping[str, _Slot], source: TensorSource) -> None:
    missing = [n for n, slot in slots.items() if not any(a in source.infos for a in slot.names)]
    unexpected = [name for name in source.infos if name not in slots]
    if not missing and not unexpected:
        return
    parts = [f"{source.path}: the tensors are not those of this model."]
    if missing:
        parts.append(f"Missing ({len(missing)}):\n{summarise_names(missing)}")
    if unexpected:
        parts.append(f"Unexpected ({len(unexpected)}):\n{summarise_names(unexpected)}")
    parts.append("Check that the file belongs to this model and that config.json is its own.")
    raise CheckpointError("\n".join(parts))


def _check_shapes(slots: Mapping[str, _Slot], source: TensorSource) -> None:
    wrong = [
        line
        for name, info in source.infos.items()
        if (line := _difference(info, slots[name])) is not None
    ]
    if wrong:
        raise CheckpointError(
            f"{source.path}: {len(wrong)} tensors differ from what config.json describes:\n"
            + "\n".join(wrong)
            + "\nCheck that weights and config.json are of the same model."
        )


def _difference(info: TensorInfo, slot: _Slot) -> str | None:
    expected = tuple(slot.tensor.shape)
    if info.shape != expected:
        return f"  {info.name}: expected shape {list(expected)}, found {list(info.shape)}"
    if info.dtype.is_floating_point != slot.tensor.dtype.is_floating_point:
        return f"  {info.name}: expected {slot.tensor.dtype}, found {info.dtype}"
    return None


def _assign(module: nn.Module, name: str, tensor: Tensor, *, is_parameter: bool) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
