"""Models on several processes of this machine, quick to start: ranks are forked from a process that has
everything imported, and frames are made by a small decoder with random weights."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import lipcast
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import GpuOptions
from lipcast.engine.loading import LoadSettings, load_networks
from lipcast.models.vae_tiny import TinyDecoder
from lipcast.parallel import stage
from lipcast.parallel.distributed_model import DistributedModel
from lipcast.parallel.rank import serve
from lipcast.parallel.rank_group import StartRank
from lipcast.weights.checkpoint import checkpoint_dir

SMALL: dict[str, Any] = {"size": "80*80", "infer_frames": 24}
"""25 tokens a frame and 125 or so of the sink: no degree of Ulysses divides them."""
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["lipcast.parallel.rank", "lipcast.parallel.fsdp"])


def start_forked(_rank: int) -> tuple[Connection, Forked]:
    here, there = multiprocessing.Pipe()
    with there:
        return here, Forked(there)


class Forked:
    """A forked process, as a rank group starts it."""

    def __init__(self, link: Connection, target: Callable[..., None] = serve, *args: str) -> None:
        self._process = _forking.Process(target=target, args=(link, *args), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def failing_at(victim: int, call: str, text: str) -> StartRank:
    """Start ranks of which one raises RuntimeError(text) in a call of "Class.method"; see `serve_failing`."""

    def start(rank: int) -> tuple[Connection, Forked]:
        here, there = multiprocessing.Pipe()
        with there:
            return here, Forked(there, *((serve_failing, call, text) if rank == victim else ()))

    return start


def serve_failing(link: Connection, call: str, text: str) -> None:
    """Serve as a rank that fails once: in the first `__init__`, or in the second of other calls."""
    owner, _, name = call.partition(".")
    real = getattr(getattr(stage, owner), name)
    fails_at = 1 if name == "__init__" else 2
    calls: list[str] = []

    def failing(*args: Any) -> Any:
        calls.append(call)
        if len(calls) == fails_at:
            raise RuntimeError(text)
        return real(*args)

    setattr(getattr(stage, owner), name, failing)
    serve(link)


def settings(decoder: Path, **changes: Any) -> LoadSettings:
    return LoadSettings(
        checkpoint_dir("tiny"),
        torch.device("cpu"),
        torch.float32,
        "fp32",
        decoder=decoder,
        **changes,
    )


def write_decoder(path: Path) -> Path:
    """A decoder that needs next to no time; what it shows is noise, but always the same."""
    torch.manual_seed(5)
    save_file(TinyDecoder((32, 16, 16, 8)).state_dict(), path)
    return path


def alone(decoder: Path) -> lipcast.Lipcast:
    """The same on one process."""
    bundle, _ = load_networks(settings(decoder))
    return lipcast.Lipcast(bundle)


def on_ranks(
    single: lipcast.Lipcast,
    load: LoadSettings,
    expected: GenerateOptions | None = None,
    start: StartRank = start_forked,
    **gpus: Any,
) -> lipcast.Lipcast:
    """The model of `single` on forked ranks."""
    distributed = DistributedModel(
        load, GpuOptions(**gpus), expected or GenerateOptions(), start=start
    )
    return lipcast.Lipcast(single.bundle, distributed)
