"""One rank: a process that loads its networks and does its part of one video after another.

Input: a connection to the process that makes the videos. It ends when told so, when that process is gone, or
with an error of its own, which it reports. A rank of the same video that is lost is an error here too.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from lipcast.config.schedule import Tick
from lipcast.engine.loading import LoadSettings, load_networks
from lipcast.engine.stopwatch import Stopwatch
from lipcast.parallel.messages import (
    AudioFeatures,
    BlockDone,
    EncodePortrait,
    FirstLatent,
    GetStats,
    InitRank,
    RankFailed,
    RankReady,
    RankStats,
    RunTick,
    StartSession,
    StepInputs,
    Stop,
)
from lipcast.parallel.roles import Role, num_dit_ranks, roles_of
from lipcast.parallel.stage import RANK_PARTS, DecoderVideo, Networks, StageVideo
from lipcast.parallel.ulysses import apply_ulysses
from lipcast.weights.bundle import Network

if TYPE_CHECKING:
    from lipcast.parallel.fsdp import ShardedWeights

_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
"""What errors say of a peer that is gone: torch has no type of its own for it."""


def serve(link: Connection, *, local_rank: int | None = None) -> None:
    """Be a rank until told to stop; whatever goes wrong is told before the process ends.

    `local_rank`: which of its machine's GPUs the rank has, where a launcher says so.
    """
    inbox = Inbox(link)
    try:
        join = inbox.take()
        assert isinstance(join, InitRank)
        if local_rank is not None and join.settings.device.type == "cuda":
            device = torch.device("cuda", local_rank)
            join = replace(join, settings=replace(join.settings, device=device))
        torch.set_num_threads(join.num_threads)
        _meet(join)
        rank = Rank(_load(join), inbox, link)
        rank.run()
    except Exception as error:
        with suppress(OSError):  # the crew has been ended already, perhaps because of this
            link.send_bytes(pickle.dumps(_failure(error)))
    finally:
        link.close()


class Inbox:
    """Messages as they come in, on a thread of its own; without their sender the process ends."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._messages: deque[Any] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._fetch_features, daemon=True).start()

    def take(self) -> Any:
        """The next message; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages)
            return self._messages.popleft()

    def take_all(self) -> list[Any]:
        """What has come in, perhaps nothing."""
        with self._changed:
            found = list(self._messages)
            self._messages.clear()
            return found

    def _fetch_features(self) -> None:
        message = None
        while not isinstance(message, Stop):
            try:
                message = pickle.loads(self._link.recv_bytes())
            except (EOFError, OSError):
                # Nobody wants the video any more, and the main thread may wait for a lost peer.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            with self._changed:
                self._messages.append(message)
                self._changed.notify()


@dataclass
class _Waiting:
    """A message that waits; `is_expected`: what it brings from other ranks is being received."""

    message: Any
    is_expected: bool = False


class Rank:
    """Does messages in their order. State: the video under way."""

    def __init__(self, networks: Networks, inbox: Inbox, link: Connection) -> None:
        self._networks, self._inbox, self._link = networks, inbox, link
        self._waiting: deque[_Waiting] = deque()
        self._stage: StageVideo | None = None
        self._decoder: DecoderVideo | None = None
        self._watch = Stopwatch(networks.device, RANK_PARTS)
        self._video = -1
        self._say(RankReady())

    def run(self) -> None:
        """Until told to stop."""
        while not isinstance(message := self._next(), Stop):
            self._do(message)
            if self._decoder is not None:
                self._say_frames(wait=False)
        self._close()

    def _next(self) -> Any:
        """The next message; what is being decoded is waited for before messages are."""
        self._waiting.extend(_Waiting(message) for message in self._inbox.take_all())
        while not self._waiting and self._decoder is not None and self._decoder.is_decoding:
            self._say_frames(wait=True)
            self._waiting.extend(_Waiting(message) for message in self._inbox.take_all())
        if not self._waiting:
            with self._watch.part("wait_s"):
                self._waiting.append(_Waiting(self._inbox.take()))
        self._look_ahead()
        return self._waiting.popleft().message

    def _look_ahead(self) -> None:
        """What other ranks will send for this video is received while this one computes."""
        for waiting in self._waiting:
            if isinstance(waiting.message, EncodePortrait | StartSession):
                return
            if isinstance(waiting.message, RunTick) and not waiting.is_expected:
                waiting.is_expected = True
                self._expect(waiting.message.tick)

    def _expect(self, tick: Tick) -> None:
        for part in (self._stage, self._decoder):
            if part is not None:
                part.expect(tick)

    def _do(self, message: Any) -> None:
        match message:
            case EncodePortrait():
                self._close()
                self._watch = Stopwatch(self._networks.device, RANK_PARTS)
                self._decoder = DecoderVideo(self._networks, message, self._watch)
                self._say(self._decoder.encoded)
            case StartSession():
                self._open(message)
            case AudioFeatures(block, features_LCV):
                assert self._stage is not None
                self._stage.set_features(block, features_LCV)
            case FirstLatent(latent_C1HW):
                assert self._stage is not None
                self._stage.learn_first(latent_C1HW)
            case RunTick(tick):
                self._run(tick)
            case GetStats(number):
                self._say(RankStats(number, self._watch.totals(), self._memory()))
            case _:
                raise AssertionError(f"expected a message to a rank, got {message!r}")

    def _open(self, message: StartSession) -> None:
        if self._decoder is None:
            self._close()
            self._watch = Stopwatch(self._networks.device, RANK_PARTS)
        self._video = message.video
        self._stage = StageVideo(self._networks, message, self._watch)

    def _run(self, tick: Tick) -> None:
        role = self._networks.role
        if self._stage is None:
            assert self._decoder is not None
            self._decoder.run(tick)
            return
        for block, latent in self._stage.run(tick):
            if role.place:
                continue
            self._say(StepInputs(self._video, block, *self._stage.inputs_of(block)))
            if not role.is_last_stage:
                continue
            self._say(BlockDone(self._video, block, latent.cpu().numpy()))
            if role.decodes:
                assert self._decoder is not None
                self._decoder.submit(block, latent)

    def _say_frames(self, *, wait: bool) -> None:
        assert self._decoder is not None
        for frames in self._decoder.collect(wait=wait):
            self._say(frames)

    def _say(self, message: Any) -> None:
        with self._watch.part("send_s"):
            self._link.send_bytes(pickle.dumps(message, protocol=5))

    def _memory(self) -> dict[str, Any] | None:
        memory_manager = self._networks.memory_manager
        if memory_manager is None:
            return None
        device_context = memory_manager.device_context
        return {
            "vram_peak_bytes": device_context.vram.peak_bytes,
            "ram_peak_bytes": device_context.ram.peak_bytes,
            "vram_parts_bytes": dict(device_context.vram.parts),
        }

    def _close(self) -> None:
        for part in (self._stage, self._decoder):
            if part is not None:
                part.close()
        self._stage = self._decoder = None


def _meet(join: InitRank) -> None:
    """All ranks find each other."""
    num_ranks = len(roles_of(join.layout))
    device = join.settings.device
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if join.meeting == "env":
        dist.init_process_group(backend)
    else:
        store = FileStore(join.meeting, num_ranks)
        dist.init_process_group(backend, store=store, rank=join.rank, world_size=num_ranks)


def _load(join: InitRank) -> Networks:
    """This rank's networks, applied to what it shares with others."""
    role, settings = roles_of(join.layout)[join.rank], join.settings
    groups = [_group(other) for other in roles_of(join.layout) if other.place == 0]
    everyone = dist.new_group(list(range(num_dit_ranks(join.layout))))
    sharded = (
        _shards(everyone, settings) if role.stage is not None and join.layout.sharded else None
    )
    bundle, memory_manager = load_networks(
        settings,
        networks=_networks_of(role),
        share=role.share(join.num_steps),
        load_dit=sharded.load if sharded else None,
    )
    num_heads = bundle.dit.config.num_heads
    if role.stage is not None and join.layout.ulysses > 1:
        num_heads = apply_ulysses(bundle.dit, groups[role.stage])
    return Networks(role, bundle, memory_manager, sharded, num_heads)


def _shards(group: Any, settings: LoadSettings) -> ShardedWeights:
    # Imported where it is used: FSDP brings sympy along, which takes a second or more.
    from lipcast.parallel.fsdp import ShardedWeights

    offload = settings.memory.offload_model
    return ShardedWeights(group, settings.device, dtype=settings.dtype, offload=offload)


def _group(role: Role) -> Any:
    """The ranks of a stage; every rank of the layout takes part in making every group."""
    return dist.new_group(list(role.stage_ranks) if role.stage is not None else [role.rank])


def _networks_of(role: Role) -> tuple[Network, ...]:
    networks: list[Network] = []
    if role.stage is not None:
        networks.append("dit")
    if role.decodes:
        networks.append("vae")
    return tuple(networks)


def _failure(error: Exception) -> RankFailed:
    first = (str(error).splitlines() or ["no message"])[0]
    lost = isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
    trace = "".join(traceback.format_exception(error))
    return RankFailed(type(error).__name__, first, trace, lost_peer=lost)


def main() -> None:
    """The process of a rank: its one argument is the number of an open socket."""
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
