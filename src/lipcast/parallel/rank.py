"""One rank: a process that loads its networks and does its share of one video after another.

Input: a connection to the main process. The process ends when it is told to, when the main process is gone,
or with an error, which it reports. A rank that runs out of memory gives up the video and goes on with the
next one where ranks exchange latents only; where they compute a pass together, the error ends all of them.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from lipcast.config.schedule import Tick
from lipcast.engine.loading import LoadSettings, load_networks
from lipcast.engine.retry import first_line
from lipcast.engine.stopwatch import Stopwatch
from lipcast.errors import MemoryBudgetError
from lipcast.memory.oom import is_out_of_memory
from lipcast.parallel.lost_peer import is_lost_peer
from lipcast.parallel.messages import (
    AudioFeatures,
    BlockDone,
    EncodePortrait,
    EncodePose,
    EndSession,
    FirstLatent,
    GetStats,
    InitRank,
    RankFailed,
    RankReady,
    RankStats,
    RunTick,
    SetContext,
    StartSession,
    StepInputs,
    Stop,
    VideoFailed,
)
from lipcast.parallel.p2p import LatentLink
from lipcast.parallel.roles import Role, num_dit_ranks, roles_of
from lipcast.parallel.stage import RANK_PARTS, DecoderVideo, RankNetworks, StageVideo
from lipcast.parallel.ulysses import apply_ulysses
from lipcast.weights.bundle import NetworkName

if TYPE_CHECKING:
    from lipcast.parallel.fsdp import ShardedWeights


def serve(link: Connection, *, local_rank: int | None = None) -> None:
    """Serve as a rank until told to stop; report an error to the main process before the process ends.

    `local_rank` is the number of the GPU to use, where a launcher assigns it.
    """
    inbox = Inbox(link)
    try:
        init = inbox.take()
        assert isinstance(init, InitRank)
        if local_rank is not None and init.settings.device.type == "cuda":
            device = torch.device("cuda", local_rank)
            init = replace(init, settings=replace(init.settings, device=device))
        torch.set_num_threads(init.num_threads)
        _init_process_group(init)
        rank = Rank(_load(init), inbox, link)
        rank.run()
    except Exception as error:
        with suppress(OSError):  # the main process may have ended this rank already
            link.send_bytes(pickle.dumps(_failure(error)))
    finally:
        link.close()


class Inbox:
    """Messages that a thread of its own receives. The process ends when their sender is gone."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._messages: deque[Any] = deque()
        self._changed = threading.Condition()
        self._rendezvous = "env"
        threading.Thread(target=self._receive, daemon=True).start()

    def take(self) -> Any:
        """Wait for the next message and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages)
            return self._messages.popleft()

    def take_all(self) -> list[Any]:
        """Return the messages that have arrived, perhaps none."""
        with self._changed:
            found = list(self._messages)
            self._messages.clear()
            return found

    def _receive(self) -> None:
        message = None
        while not isinstance(message, Stop):
            try:
                message = pickle.loads(self._link.recv_bytes())
            except (EOFError, OSError):
                if not self._link.closed:
                    self._tidy_up()
                # The main thread may be waiting for another rank, where no exception reaches it.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if isinstance(message, InitRank):
                self._rendezvous = message.rendezvous
            with self._changed:
                self._messages.append(message)
                self._changed.notify()

    def _tidy_up(self) -> None:
        """Remove the file by which the ranks found each other: the main process no longer can."""
        if self._rendezvous != "env":
            store = Path(self._rendezvous)
            with suppress(OSError):  # another rank may be quicker
                store.unlink(missing_ok=True)
                store.parent.rmdir()


@dataclass
class _Queued:
    """A message to be handled; `is_expected`: the latents that it takes are being received."""

    message: Any
    is_expected: bool = False


class Rank:
    """Handles messages in order. State: the video that is being made."""

    def __init__(self, networks: RankNetworks, inbox: Inbox, link: Connection) -> None:
        self._networks, self._inbox, self._connection = networks, inbox, link
        self._queue: deque[_Queued] = deque()
        self._stage: StageVideo | None = None
        self._decoder: DecoderVideo | None = None
        self._latents: LatentLink | None = None
        self._watch = Stopwatch(networks.device, RANK_PARTS)
        self._video = -1
        self._has_given_up = False
        self._send(RankReady())

    def run(self) -> None:
        """Handle messages until told to stop."""
        while not isinstance(message := self._next(), Stop):
            self._guard(partial(self._handle, message), message)
            self._send_frames(wait=False)
        self._end_video()

    def _next(self) -> Any:
        """Return the next message; while there is none, wait for frames first, then for messages."""
        self._queue.extend(map(_Queued, self._inbox.take_all()))
        while not self._queue and self._decoder is not None and self._decoder.is_decoding:
            self._send_frames(wait=True)
            self._queue.extend(map(_Queued, self._inbox.take_all()))
        if not self._queue:
            with self._watch.part("wait_s"):
                self._queue.append(_Queued(self._inbox.take()))
        self._look_ahead()
        return self._queue.popleft().message

    def _look_ahead(self) -> None:
        """Begin to receive what the queued ticks of this video take, while earlier ones are computed."""
        for queued in self._queue:
            if isinstance(queued.message, EncodePortrait | StartSession):
                return
            if isinstance(queued.message, RunTick) and not queued.is_expected:
                queued.is_expected = True
                if self._latents is not None:
                    self._latents.expect(queued.message.tick)

    def _guard(self, call: Callable[[], None], message: Any = None) -> None:
        """Call; where memory runs out and the other ranks can go on without this one, give the video up."""
        try:
            call()
        except Exception as error:
            role = self._networks.role
            is_alone = role.stage is None or not (role.layout.sharded or role.layout.ulysses > 1)
            if not (is_alone and _is_memory_error(error)):
                raise
            reason = first_line(error)
        else:
            return
        # The error is let go here: its traceback holds the tensors of the failed call.
        self._has_given_up = True
        self._release()
        name = f"rank {self._networks.role.rank} ({self._networks.role})"
        self._send(VideoFailed(self._video, name, reason))
        if isinstance(message, RunTick) and self._latents is not None:
            self._latents.skip(message.tick)

    def _handle(self, message: Any) -> None:
        match message:
            case EncodePortrait() | StartSession():
                self._open(message)
            case EndSession(video):
                if video == self._video:
                    self._end_video()
            case GetStats(number):
                self._send(RankStats(number, self._watch.totals(), self._memory()))
            case RunTick(tick) if self._has_given_up and self._latents is not None:
                self._latents.skip(tick)
            case _ if self._has_given_up:
                pass
            case RunTick(tick):
                self._run(tick)
            case EncodePose(block, pixels_FHWC):
                assert self._decoder is not None
                self._send(self._decoder.encode_pose(block, pixels_FHWC))
            case AudioFeatures() | SetContext() | FirstLatent():
                assert self._stage is not None
                self._condition(self._stage, message)
            case _:
                raise AssertionError(f"expected a message to a rank, got {message!r}")

    def _condition(
        self, stage: StageVideo, message: AudioFeatures | SetContext | FirstLatent
    ) -> None:
        """Hand over what conditions the blocks to come."""
        match message:
            case AudioFeatures():
                stage.set_features(message)
            case SetContext(block, context_TC):
                stage.set_context(block, context_TC)
            case FirstLatent(latent_C1HW):
                stage.set_first_latent(latent_C1HW)

    def _open(self, message: EncodePortrait | StartSession) -> None:
        if message.video != self._video:
            self._end_video()
            self._video, self._has_given_up = message.video, False
            self._watch = Stopwatch(self._networks.device, RANK_PARTS)
            self._latents = LatentLink(self._networks.role, message.spec, self._networks.device)
        if self._has_given_up:
            return
        assert self._latents is not None
        if isinstance(message, StartSession):
            self._stage = StageVideo(self._networks, message, self._latents, self._watch)
        else:
            self._decoder = DecoderVideo(self._networks, message, self._latents, self._watch)
            self._send(self._decoder.encoded)

    def _run(self, tick: Tick) -> None:
        role = self._networks.role
        if self._stage is None:
            assert self._decoder is not None
            self._decoder.run(tick)
            return
        for block, latent in self._stage.run(tick):
            if role.ulysses_rank:
                continue
            self._send(StepInputs(self._video, block, *self._stage.inputs_of(block)))
            if not role.is_last_stage:
                continue
            self._send(BlockDone(self._video, block, latent.cpu().numpy()))
            if role.decodes:
                assert self._decoder is not None
                self._decoder.submit(block, latent)

    def _send_frames(self, *, wait: bool) -> None:
        def send() -> None:
            assert self._decoder is not None
            for frames in self._decoder.collect(wait=wait):
                self._send(frames)

        if self._decoder is not None:
            self._guard(send)

    def _send(self, message: Any) -> None:
        with self._watch.part("send_s"):
            self._connection.send_bytes(pickle.dumps(message, protocol=5))

    def _memory(self) -> dict[str, Any] | None:
        manager = self._networks.memory_manager
        if manager is None:
            return None
        device_context = manager.device_context
        return {
            "vram_peak_bytes": device_context.vram.peak_bytes,
            "vram_used_bytes": device_context.vram.used_bytes,
            "ram_peak_bytes": device_context.ram.peak_bytes,
            "vram_parts_bytes": dict(device_context.vram.parts),
        }

    def _end_video(self) -> None:
        """Let every block that was sent arrive, then give the memory of the video back."""
        if self._latents is not None:
            self._latents.finish()
        self._latents = None
        self._release()

    def _release(self) -> None:
        for part in (self._stage, self._decoder):
            if part is not None:
                part.close()
        self._stage = self._decoder = None


def _init_process_group(init: InitRank) -> None:
    """Join the group of all ranks.

    With `device_id` NCCL makes the communicator here, not in the first collective that needs one.
    """
    num_ranks = len(roles_of(init.layout))
    device = init.settings.device
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    device_id = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        device_id = device
    if init.rendezvous == "env":
        dist.init_process_group(backend, device_id=device_id)
    else:
        store = FileStore(init.rendezvous, num_ranks)
        dist.init_process_group(
            backend, store=store, rank=init.rank, world_size=num_ranks, device_id=device_id
        )


def _load(init: InitRank) -> RankNetworks:
    """Load the networks of this rank, and apply Ulysses or sharding to its transformer."""
    role, settings = roles_of(init.layout)[init.rank], init.settings
    groups = [_group(other) for other in roles_of(init.layout) if other.ulysses_rank == 0]
    dit_group = dist.new_group(list(range(num_dit_ranks(init.layout))))
    is_sharded = role.stage is not None and init.layout.sharded
    sharded = _sharded_weights(dit_group, settings) if is_sharded else None
    bundle, manager = load_networks(
        settings,
        networks=_networks_of(role),
        share=role.share(init.num_steps),
        load_dit=sharded.load if sharded else None,
    )
    num_heads = bundle.dit.config.num_heads
    if role.stage is not None and init.layout.ulysses > 1:
        num_heads = apply_ulysses(bundle.dit, groups[role.stage])
    return RankNetworks(role, bundle, manager, sharded, num_heads)


def _sharded_weights(group: Any, settings: LoadSettings) -> ShardedWeights:
    # Imported only where it is used: FSDP imports sympy, which takes a second or more.
    from lipcast.parallel.fsdp import ShardedWeights

    offload = settings.memory.offload_model
    return ShardedWeights(group, settings.device, dtype=settings.dtype, offload=offload)


def _group(role: Role) -> Any:
    """Return the group of a stage; every rank of the layout must call this for every stage."""
    return dist.new_group(list(role.stage_ranks) if role.stage is not None else [role.rank])


def _networks_of(role: Role) -> tuple[NetworkName, ...]:
    networks: list[NetworkName] = []
    if role.stage is not None:
        networks.append("dit")
    if role.decodes:
        networks.append("vae")
    return tuple(networks)


def _is_memory_error(error: BaseException) -> bool:
    return is_out_of_memory(error) or isinstance(error, MemoryBudgetError)


def _failure(error: Exception) -> RankFailed:
    cause: Literal["error", "out of memory", "lost peer"] = "error"
    if is_out_of_memory(error):
        cause = "out of memory"
    elif is_lost_peer(error):
        cause = "lost peer"
    trace = "".join(traceback.format_exception(error))
    return RankFailed(type(error).__name__, first_line(error), trace, cause)


def main() -> None:
    """Run the process of a rank; its one argument is the file descriptor of its connection."""
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
