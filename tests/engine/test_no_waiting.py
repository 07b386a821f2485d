"""Between the first block of a video and its last, the host waits for nothing but finished frames.

On fake CUDA tensors: whatever reads a value back, copies over the link so that the host waits, or
synchronises, raises.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import NoReadBack
from torch import Tensor

from lipcast.engine.decode import FrameDecoder
from lipcast.engine.stopwatch import Stopwatch
from lipcast.lab.fake_cuda import DEVICE, FakeEvent, FakeStream, fake_cuda
from lipcast.lab.gpu_work import (
    StepCase,
    default_spec,
    fake_features,
    fake_reference,
    fake_vae,
    steady_executor,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
from fake_videos import TWO_LAYERS, VAE, latent_shape

CASES = {
    "fused, fp8": StepCase("fp8"),
    "plain, int4, fp8 ring": StepCase("int4", "fp8", kernels="plain"),
    "wavefront, int4 ring": StepCase("bf16", "int4", num_lanes=3),
    "dequantised fp8": StepCase("fp8", direct=False),
}


class NoWaiting(NoReadBack):
    """Refuses copies over the link that the host waits for, too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = func._schema.name
        if name in {"aten::copy_", "aten::_to_copy"}:
            devices = {x.device.type for x in (*args, result) if isinstance(x, Tensor)}
            goes_on = (kwargs or {}).get("non_blocking", len(args) > 2 and args[2])
            assert len(devices) == 1 or goes_on, f"{name} of {tuple(result.shape)} is waited for"
        return result


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make whatever waits an error. Inside `fake_cuda`."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the host waits for the GPU")

    with pytest.MonkeyPatch.context() as patch, NoWaiting():
        patch.setattr(torch.cuda, "synchronize", refuse)
        patch.setattr(FakeStream, "synchronize", refuse)
        patch.setattr(FakeEvent, "synchronize", refuse)
        yield


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] * (case != StepCase("fp8")))
        for name, case in CASES.items()
    ],
)
def test_a_block_and_its_steps(case: StepCase) -> None:
    spec = default_spec(TWO_LAYERS)
    with fake_cuda(), steady_executor(TWO_LAYERS, spec, case) as (executor, tick), no_waiting():
        executor.run(tick)
        block = max(unit.block for unit in tick) + 1
        executor.start(block, fake_features(TWO_LAYERS))
        executor.run([type(tick[0])(block, 0)])


@pytest.mark.slow
def test_decoding_is_begun_and_timed() -> None:
    """Frames are waited for when they are collected; seconds are read of what has passed."""
    spec = default_spec(TWO_LAYERS)
    with fake_vae(VAE) as vae:
        decoder = FrameDecoder(vae, fake_reference(spec, TWO_LAYERS))
        latent, watch = torch.empty(latent_shape(spec), device=DEVICE), Stopwatch(DEVICE)
        with no_waiting():
            with watch.part("vae_s"):
                pending = decoder.submit(latent)
            watch.lap()
        assert pending.collect().shape[0] == 12


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.to("cpu"),
        lambda x: torch.empty(3).to(x.device),
        lambda x: x.nonzero(),
        lambda _: torch.cuda.synchronize(),
        lambda _: torch.cuda.current_stream().synchronize(),
    ],
    ids=["item", "bool", "to the host", "from the host", "nonzero", "device", "stream"],
)
def test_whatever_waits_is_seen(wait: Any) -> None:
    with fake_cuda():
        x = torch.ones(3, device=DEVICE)
        with no_waiting(), pytest.raises((AssertionError, RuntimeError)):
            wait(x)
