"""Weights of the transformer's layers, each where the plan puts it, brought to the device when needed.

Inputs: a tensor source, placements, arenas, a copier. Output: an `ensure_resident` for the model. State: the
buffer of every group, on the device or in host memory (those on disk have none), and the slots that the other
groups are streamed through: while one is used, the next ones are copied.
Invariants: from `ensure_resident(use, layer)` until the next call, the module's tensors of that group are the
checkpoint's. A call that raises has allocated nothing more than it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lipcast.memory.arena import Arena
from lipcast.memory.copier import Copier, Event
from lipcast.memory.disk_reader import DiskReader, read_params
from lipcast.memory.layer_params import FlatParams, ParamsKey, layer_params, root_params
from lipcast.memory.slots import SlotPool, Streamed
from lipcast.models.dit import DiT
from lipcast.planning import items
from lipcast.planning.plan import Placement
from lipcast.planning.tensors import WeightUse
from lipcast.weights.source import TensorSource

PASSING = "weights for the prompt, passing"


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """Placement of each layer's weights, and the slots they are streamed through."""

    layers: tuple[Placement, ...]
    num_slots: int
    """Buffers on the device for layers that are not resident; 0 if all are."""
    keeps_prompt: bool = True
    """Whether weights that only a new prompt needs stay in host memory, or are read from disk again."""

    def placement(self, key: ParamsKey) -> Placement:
        """Return where a group goes."""
        use, layer = key
        if use == "prompt":
            return "pinned" if self.keeps_prompt else "disk"
        return self.layers[layer]


class WeightStore:
    """Holds the weights of one model: `load_into(model, source, place=store.place)`, then `attach`."""

    def __init__(
        self,
        source: TensorSource,
        plan: WeightPlan,
        *,
        dtype: torch.dtype,
        device: Arena,
        host: Arena,
        copier: Copier,
    ) -> None:
        """`source` is read again for groups on disk; parameters become `dtype`."""
        self.plan: WeightPlan | None = plan
        """The plan in force; None after an `apply_plan` that failed, until one succeeds."""
        self._source, self._dtype = source, dtype
        self._device, self._host, self._copier = device, host, copier
        self._params: dict[ParamsKey, FlatParams] = {}
        self._where: dict[ParamsKey, Placement] = {}
        self._homes: dict[ParamsKey, Tensor] = {}
        """Buffers of the groups that are on the device or in host memory."""
        self._items: dict[ParamsKey, Streamed] = {}
        self._upcoming: dict[ParamsKey, list[Streamed]] = {}
        """By group: those to prefetch while it is used. Made anew by every `apply_plan`."""
        self._pool: SlotPool | None = None
        self._reader: DiskReader | None = None
        self._passing: Tensor | None = None
        """Buffer on the device for the prompt's weights, while a prompt is encoded."""
        self._root: FlatParams | None = None
        self._root_home: Tensor | None = None
        self._num_moves = 0

    @property
    def version(self) -> int | None:
        """A number that changes whenever weights move; None while some of them are streamed."""
        return self._num_moves if self._pool is None and self.plan is not None else None

    # Loading

    def place(self, model: nn.Module) -> dict[str, Tensor | None]:
        """Return by tensor name the memory to load it into; None for one that stays on disk.

        Raises torch.OutOfMemoryError, and has allocated nothing then.
        """
        assert isinstance(model, DiT) and not self._params and self.plan is not None
        try:
            return self._place(model, self.plan)
        except BaseException:
            self.release()
            raise

    def attach(self, model: DiT) -> None:
        """Make the model use this store; its tensors are loaded."""
        assert self.plan is not None
        self._open_slots(self.plan)
        model.ensure_resident = self.ensure_resident

    def release(self) -> None:
        """Free all weights; the model cannot be used any more. Further calls do nothing."""
        with ExitStack() as stack:  # frees everything, even if waiting for something raises
            stack.callback(self._release_root)
            for key, home in self._homes.items():
                stack.callback(self._params[key].detach)
                stack.callback(self._arena(key).release, home)
            stack.callback(self._homes.clear)
            self._close_slots()
        self._params, self._where, self._items, self.plan = {}, {}, {}, None

    def _place(self, model: DiT, plan: WeightPlan) -> dict[str, Tensor | None]:
        self._root = root_params(model, self._dtype)
        self._root_home = self._device.allocate(items.ROOT, self._root.num_bytes)
        root_views = self._root.layout.views(self._root_home)
        self._root.attach(root_views)
        homes: dict[str, Tensor | None] = dict(root_views)
        self._params = layer_params(model, self._dtype)
        self._items = {
            key: Streamed(partial(self._fetch, key), params.layout.views)
            for key, params in self._params.items()
        }
        for key, params in self._params.items():
            where = plan.placement(key)
            home = self._allocate(key, where)
            self._relocate(key, where, home)
            homes.update(
                dict.fromkeys(params.places) if home is None else params.layout.views(home)
            )
        return homes

    def _release_root(self) -> None:
        if self._root is not None:
            self._root.detach()
        if self._root_home is not None:
            self._device.release(self._root_home)
        self._root = self._root_home = None

    # Running

    def ensure_resident(self, use: WeightUse, layer: int) -> None:
        """Make the tensors of this group usable, and prefetch the groups that follow."""
        assert self.plan is not None, "the last apply_plan failed; apply a plan first"
        key = use, layer
        if use == "prompt":
            self._pass_prompt(key)
            return
        self._release_passing()
        if self._pool is None:
            return
        self._pool.release()
        if self._where.get(key, "resident") != "resident":
            self._params[key].attach(self._pool.acquire(self._items[key]))
        self._pool.prefetch(self._upcoming[key])

    def _following(self, key: ParamsKey, count: int) -> list[Streamed]:
        """Return the streamed groups that come next: the rest of this pass, then the next tick's."""
        use, layer = key
        streamed = [k for k in self._params if self._streams(k)]
        rest = [k for k in streamed if k[0] == use and k[1] > layer]
        again = [k for k in streamed if k[0] == "tick" and k not in rest and k != key]
        return [self._items[k] for k in (rest + again)[:count]]

    def _streams(self, key: ParamsKey) -> bool:
        return key[0] != "prompt" and self._where[key] != "resident"

    def _fetch(
        self, key: ParamsKey, target: Tensor, after: Sequence[Event]
    ) -> Event | Future[Event]:
        params = self._params[key]
        if key in self._homes:
            return self._copier.fetch(target[: params.num_bytes], self._homes[key], after=after)
        assert self._reader is not None, "layers on disk have a reader"
        return self._reader.fetch(params, target, after=after)

    def _pass_prompt(self, key: ParamsKey) -> None:
        """Copy a group to the one buffer that all of them share, and wait: this is once per prompt."""
        params = self._params[key]
        if self._passing is None:
            most = max(p.num_bytes for (use, _), p in self._params.items() if use == "prompt")
            self._passing = self._device.allocate(PASSING, most)
        home = self._on_host(key)
        copied = self._copier.fetch(
            self._passing[: params.num_bytes], home, after=[self._copier.here()]
        )
        self._copier.finish(copied)
        params.attach(params.layout.views(self._passing))

    def _release_passing(self) -> None:
        if self._passing is None:
            return
        for (use, _), params in self._params.items():
            if use == "prompt":
                params.detach()  # all of them are views of this buffer
        passing, self._passing = self._passing, None
        try:
            self._copier.finish(self._copier.here())
        finally:
            self._device.release(passing)

    # Moving

    def apply_plan(self, plan: WeightPlan) -> None:
        """Move what another plan puts elsewhere: first what leaves the device, then what comes.

        Raises torch.OutOfMemoryError if there is not enough memory. Every group is then in its old or
        in its new place, nothing else is allocated, `self.plan` is None, and the call must be repeated
        with this plan or another before the model is used.
        """
        self._close_slots()
        self.plan = None
        self._num_moves += 1
        order: tuple[Placement, ...] = ("disk", "pinned", "resident")
        for wanted in order:
            for key in self._params:
                if plan.placement(key) == wanted != self._where[key]:
                    self._move(key, wanted)
        self._open_slots(plan)
        self.plan = plan

    def _move(self, key: ParamsKey, where: Placement) -> None:
        new, old, arena = self._allocate(key, where), self._homes.get(key), self._arena(key)
        try:
            if new is not None:
                self._copy_home(key, new)
        except BaseException:
            if new is not None:
                self._arena_of(where).release(new)
            raise
        self._relocate(key, where, new)
        if old is not None:
            arena.release(old)

    def _copy_home(self, key: ParamsKey, new: Tensor) -> None:
        if self._where[key] == "resident":
            copied = self._copier.store(new, self._homes[key], after=[self._copier.here()])
        else:
            copied = self._copier.fetch(new, self._on_host(key), after=[self._copier.here()])
        self._copier.finish(copied)

    def _on_host(self, key: ParamsKey) -> Tensor:
        """Return the group in host memory: its home, or a buffer that it is read into."""
        if key in self._homes:
            return self._homes[key]
        buffer = torch.empty(self._params[key].num_bytes, dtype=torch.uint8)
        if self._reader is not None:
            self._reader.read(self._params[key], buffer)
        else:
            read_params(self._source, self._params[key], buffer)
        return buffer

    def _relocate(self, key: ParamsKey, where: Placement, home: Tensor | None) -> None:
        """Record the group's new home. On the device, its tensors become the module's for good."""
        params = self._params[key]
        self._where[key] = where
        self._homes.pop(key, None)
        if home is not None:
            self._homes[key] = home
        if home is not None and where == "resident":
            params.attach(params.layout.views(home))
        else:
            params.detach()

    def _allocate(self, key: ParamsKey, where: Placement) -> Tensor | None:
        """Return memory for a group in a place; None on disk."""
        num_bytes = self._params[key].num_bytes
        if where == "resident":
            return self._device.allocate(items.LAYERS, num_bytes)
        if where == "pinned":
            item = items.PROMPT_WEIGHTS if key[0] == "prompt" else items.PINNED_LAYERS
            return self._host.allocate(item, num_bytes)
        return None

    def _arena(self, key: ParamsKey) -> Arena:
        return self._arena_of(self._where[key])

    def _arena_of(self, where: Placement) -> Arena:
        return self._device if where == "resident" else self._host

    def _open_slots(self, plan: WeightPlan) -> None:
        """Allocate what the plan streams through. Raises torch.OutOfMemoryError; nothing is open then."""
        streamed = [key for key in self._params if self._streams(key)]
        if not streamed:
            return
        used = (key for key in self._params if key[0] != "prompt")
        self._upcoming = {key: self._following(key, plan.num_slots - 1) for key in used}
        # Of all layers, streamed or not: the planner promises slots for the widest.
        widest = max(p.num_bytes for (use, _), p in self._params.items() if use != "prompt")
        try:
            if any(self._where[key] == "disk" for key in streamed):
                self._reader = DiskReader(
                    self._source, host=self._host, copier=self._copier, num_bytes=widest
                )
            self._pool = SlotPool(
                self._device,
                self._copier,
                part=items.LAYER_SLOTS,
                num_slots=plan.num_slots,
                slot_bytes=widest,
            )
        except BaseException:
            self._close_slots()
            raise

    def _close_slots(self) -> None:
        reader, pool, self._reader, self._pool = self._reader, self._pool, None, None
        with ExitStack() as stack:  # closes all of it, even if something raises; the reader first
            if pool is not None:
                stack.callback(pool.close)
            if reader is not None:
                stack.callback(reader.close)
            self._release_passing()
