"""Weights of the transformer's layers, each where the plan puts it, brought to the device when needed.

Input: a tensor source, placements, arenas, a copier. Output: an `ensure_resident` for the model. State: the
buffer of every pack, on the device or in host memory (those on disk have none), and the slots that packs from
elsewhere pass through: while one is computed with, the next are copied.
Invariant: from `ensure_resident(use, layer)` until the next one, the module's tensors of that pack are the
checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
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
from lipcast.planning.plan import Placement
from lipcast.planning.tensors import WeightUse
from lipcast.weights.source import TensorSource

LAYERS, ROOT = "weights of layers", "weights outside layers"
SLOTS = "slots for streamed layers"
PINNED, PROMPT = "streamed layers, pinned", "weights for the prompt"
PASSING = "weights for the prompt, passing"


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """Where the weights go: the placement of each layer, and what they pass through."""

    layers: tuple[Placement, ...]
    num_slots: int
    """Buffers on the device for layers that are not resident; 0 where all are."""
    keeps_prompt: bool = True
    """Weights that only a new prompt needs stay in host memory; else they are read again."""

    def placement(self, key: ParamsKey) -> Placement:
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
        """`source` is read again for packs on disk; parameters become `dtype`."""
        self.plan = plan
        self._source, self._dtype = source, dtype
        self._device, self._host, self._copier = device, host, copier
        self._packs: dict[ParamsKey, FlatParams] = {}
        self._where: dict[ParamsKey, Placement] = {}
        self._homes: dict[ParamsKey, Tensor] = {}
        """Buffers of the packs that are on the device or in host memory."""
        self._items: dict[ParamsKey, Streamed] = {}
        self._upcoming: dict[ParamsKey, list[Streamed]] = {}
        """By pack: those to fetch ahead while it is used. Made anew with every arrangement."""
        self._pool: SlotPool | None = None
        self._reader: DiskReader | None = None
        self._passing: Tensor | None = None

    # Loading

    def place(self, model: nn.Module) -> dict[str, Tensor | None]:
        """By tensor name: memory to load it into; None for one that stays on disk."""
        assert isinstance(model, DiT) and not self._packs
        root = root_params(model, self._dtype)
        root_views = root.layout.views(self._device.allocate(ROOT, root.num_bytes))
        root.attach(root_views)
        homes: dict[str, Tensor | None] = dict(root_views)
        self._packs = layer_params(model, self._dtype)
        self._items = {
            key: Streamed(partial(self._fetch, key), pack.layout.views)
            for key, pack in self._packs.items()
        }
        for key, pack in self._packs.items():
            where = self.plan.placement(key)
            home = self._allocate(key, where)
            self._relocate(key, where, home)
            homes.update(dict.fromkeys(pack.places) if home is None else pack.layout.views(home))
        return homes

    def attach(self, model: DiT) -> None:
        """Make the model use this store; its tensors are loaded."""
        self._open_slots()
        model.ensure_resident = self.ensure_resident

    # Running

    def ensure_resident(self, use: WeightUse, layer: int) -> None:
        """Make the tensors of this pack usable; the packs that follow are on their way."""
        key = use, layer
        if use == "prompt":
            self._pass_prompt(key)
            return
        self._release_passing()
        if self._pool is None:
            return
        self._pool.release()
        if self._where.get(key, "resident") != "resident":
            self._packs[key].attach(self._pool.acquire(self._items[key]))
        self._pool.prefetch(self._upcoming[key])

    def _following(self, key: ParamsKey) -> list[Streamed]:
        """The streamed packs that come next: the rest of this pass, then the next tick's."""
        use, layer = key
        streamed = [k for k in self._packs if self._streams(k)]
        rest = [k for k in streamed if k[0] == use and k[1] > layer]
        again = [k for k in streamed if k[0] == "tick" and k not in rest and k != key]
        return [self._items[k] for k in (rest + again)[: self.plan.num_slots - 1]]

    def _streams(self, key: ParamsKey) -> bool:
        return key[0] != "prompt" and self._where[key] != "resident"

    def _fetch(
        self, key: ParamsKey, target: Tensor, after: Sequence[Event]
    ) -> Event | Future[Event]:
        pack = self._packs[key]
        if key in self._homes:
            return self._copier.fetch(target[: pack.num_bytes], self._homes[key], after=after)
        assert self._reader is not None, "layers on disk have a reader"
        return self._reader.fetch(pack, target, after=after)

    def _pass_prompt(self, key: ParamsKey) -> None:
        """Once per prompt, without haste: one buffer, one copy after the other."""
        pack = self._packs[key]
        if self._passing is None:
            most = max(p.num_bytes for (use, _), p in self._packs.items() if use == "prompt")
            self._passing = self._device.allocate(PASSING, most)
        home = self._on_host(key)
        mark = self._copier.fetch(
            self._passing[: pack.num_bytes], home, after=[self._copier.here()]
        )
        self._copier.finish(mark)
        pack.attach(pack.layout.views(self._passing))

    def _release_passing(self) -> None:
        if self._passing is not None:
            self._copier.finish(self._copier.here())
            self._device.release(self._passing)
            self._passing = None

    # Moving

    def apply_plan(self, plan: WeightPlan) -> None:
        """Move what another plan puts elsewhere: first what leaves the device, then what comes.

        Raises torch.OutOfMemoryError where the new place has no room; every pack is then at its old
        or at its new place, and the call may be made again, with this plan or another.
        """
        self._close_slots()
        self.plan = plan
        order: tuple[Placement, ...] = ("disk", "pinned", "resident")
        for wanted in order:
            for key in self._packs:
                if plan.placement(key) == wanted != self._where[key]:
                    self._move(key, wanted)
        self._open_slots()

    def _move(self, key: ParamsKey, where: Placement) -> None:
        new, old = self._allocate(key, where), self._homes.get(key)
        if new is not None:
            self._copy_home(key, new)
        if old is not None:
            self._arena(key).release(old)
        self._relocate(key, where, new)

    def _copy_home(self, key: ParamsKey, new: Tensor) -> None:
        if self._where[key] == "resident":
            mark = self._copier.store(new, self._homes[key], after=[self._copier.here()])
        else:
            mark = self._copier.fetch(new, self._on_host(key), after=[self._copier.here()])
        self._copier.finish(mark)

    def _on_host(self, key: ParamsKey) -> Tensor:
        """The pack in host memory: its home, or read anew."""
        if key in self._homes:
            return self._homes[key]
        buffer = torch.empty(self._packs[key].num_bytes, dtype=torch.uint8)
        if self._reader is not None:
            self._reader.read(self._packs[key], buffer)
        else:
            read_params(self._source, self._packs[key], buffer)
        return buffer

    def _relocate(self, key: ParamsKey, where: Placement, home: Tensor | None) -> None:
        """From now on the pack lives there; on the device its tensors are the module's for good."""
        pack = self._packs[key]
        self._where[key] = where
        self._homes.pop(key, None)
        if home is not None:
            self._homes[key] = home
        if home is not None and where == "resident":
            pack.attach(pack.layout.views(home))
        else:
            pack.detach()

    def _allocate(self, key: ParamsKey, where: Placement) -> Tensor | None:
        """Memory for a pack at a place; None on disk."""
        num_bytes = self._packs[key].num_bytes
        if where == "resident":
            return self._device.allocate(LAYERS, num_bytes)
        if where == "pinned":
            return self._host.allocate(PROMPT if key[0] == "prompt" else PINNED, num_bytes)
        return None

    def _arena(self, key: ParamsKey) -> Arena:
        return self._device if self._where[key] == "resident" else self._host

    def _open_slots(self) -> None:
        streamed = [key for key in self._packs if self._streams(key)]
        if not streamed:
            return
        used = (key for key in self._packs if key[0] != "prompt")
        self._upcoming = {key: self._following(key) for key in used}
        # Of all layers, streamed or not: the planner promises slots for the widest.
        widest = max(p.num_bytes for (use, _), p in self._packs.items() if use != "prompt")
        if any(self._where[key] == "disk" for key in streamed):
            self._reader = DiskReader(
                self._source, host=self._host, copier=self._copier, num_bytes=widest
            )
        self._pool = SlotPool(self._copier)
        for _ in range(self.plan.num_slots):
            self._pool.add(self._device.allocate(SLOTS, widest))

    def _close_slots(self) -> None:
        self._release_passing()
        if self._reader is not None:
            self._reader.close()
        for buffer in self._pool.close() if self._pool is not None else ():
            self._device.release(buffer)
        self._reader = self._pool = None
