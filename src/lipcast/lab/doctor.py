"""Checks of this machine that compute no video.

Output: findings, each with a topic, a status, what was found and what to do about it. A `problem`
means that `generate` would not run. torch is imported inside: a broken one is a finding too.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

from lipcast.config.units import format_bytes
from lipcast.env import cache_dir
from lipcast.lab.driver import DriverCard

Status = Literal["ok", "warning", "problem"]
FIRST_PYTHON = (3, 11)
_LOW_DISK_BYTES = 2 << 30
_OPTIONAL = (("huggingface_hub", "hub", "lipcast pull"), ("gguf", "gguf", ".gguf files"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination. `advice` is empty where there is nothing to do."""

    topic: str
    status: Status
    found: str
    advice: str = ""


def examine(cards: Sequence[DriverCard]) -> Iterator[Finding]:
    """Look at everything, from the ground up; `cards` are those that the driver lists."""
    yield _python()
    yield from _libraries()
    yield from _guarded("torch", partial(_torch, cards))
    yield from _guarded("FFmpeg", _ffmpeg)
    yield from _host()


def _guarded(topic: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield findings; a check that fails is a finding itself: what it needs is broken."""
    try:
        yield from look()
    except Exception as error:  # a library that is half installed may raise anything
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        yield Finding(topic, "problem", first_line, "install Lipcast again in a fresh environment")


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < FIRST_PYTHON:
        needed = ".".join(map(str, FIRST_PYTHON))
        return Finding("Python", "problem", found, f"install Python {needed} or newer")
    return Finding("Python", "ok", found)


def _libraries() -> Iterator[Finding]:
    try:
        yield Finding("transformers", "ok", version("transformers"))
    except PackageNotFoundError:
        yield Finding("transformers", "problem", "not installed", "pip install lipcast")
    for package, extra, purpose in _OPTIONAL:
        if find_spec(package) is None:
            advice = f"for {purpose}: pip install 'lipcast[{extra}]'"
            yield Finding(package, "warning", "not installed", advice)
        else:
            yield Finding(package, "ok", version(package.replace("_", "-")))


def _torch(cards: Sequence[DriverCard]) -> Iterator[Finding]:
    import torch

    yield Finding("torch", "ok", torch.__version__)
    yield _driver(torch, cards)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield from _gpu(torch, index)
        yield from _kernels(torch.device("cuda", index))
    yield _attention(torch)


def _driver(torch: Any, cards: Sequence[DriverCard]) -> Finding:
    """Return what torch and the driver say about CUDA together."""
    listed = cards[0].driver_version if cards else ""
    if torch.cuda.is_available():
        return Finding("CUDA", "ok", f"{torch.version.cuda}, driver {listed or 'unknown'}")
    if not listed:
        return Finding("CUDA", "warning", "no GPU found", "videos are computed on the CPU, slowly")
    if torch.version.cuda is None:
        advice = "install a torch that is built with CUDA; until then the CPU computes"
        return Finding("CUDA", "warning", f"driver {listed}, but this torch has no CUDA", advice)
    advice = "update the driver, or install a torch for an older CUDA; until then the CPU computes"
    found = f"driver {listed} does not serve CUDA {torch.version.cuda}"
    return Finding("CUDA", "warning", found, advice)


def _gpu(torch: Any, index: int) -> Iterator[Finding]:
    from lipcast.memory.probe import link_bytes_per_s
    from lipcast.weights.fp4 import has_fp4_matmul
    from lipcast.weights.fp8 import has_fp8_matmul

    device = torch.device("cuda", index)
    name, topic = torch.cuda.get_device_name(index), f"GPU {index}"
    major, minor = torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    fp8 = "multiplies fp8" if has_fp8_matmul(device) else "no fp8 products"
    fp4 = "multiplies NVFP4" if has_fp4_matmul(device) else "no NVFP4 products"
    yield Finding(topic, "ok", f"{name}, compute capability {major}.{minor}, {fp8}, {fp4}")
    memory = f"{format_bytes(free)} free of {format_bytes(total)}"
    if free < total / 2:
        advice = "other programs hold the rest; end them, or plan with --vram"
        yield Finding(f"{topic} memory", "warning", memory, advice)
    else:
        yield Finding(f"{topic} memory", "ok", memory)
    rate = link_bytes_per_s(device) / 1e9
    yield Finding(f"{topic} link", "ok", f"{rate:.1f} GB/s from pinned host memory, measured")


def _kernels(device: Any) -> Iterator[Finding]:
    """Yield the kernels and the attention that `auto` computes with on a GPU, and why."""
    from lipcast.config.models import DiTConfig
    from lipcast.models.kernels.choice import attention_outlook, choose_kernels

    chosen = choose_kernels("auto", device, DiTConfig())
    kernels = chosen.kernels
    topic, found = f"GPU {device.index} kernels", f"{kernels.name}: {chosen.reason}"
    if kernels.name == "triton":
        yield Finding(topic, "ok", found)
    else:
        advice = "pip install triton; until then steps take about twice as long"
        yield Finding(topic, "warning", found, advice)
    used, others = attention_outlook(device, DiTConfig(), kernels)
    yield Finding(f"GPU {device.index} attention", "ok", f"{used}. Others: {others}")


def _attention(torch: Any) -> Finding:
    """Return the back ends of torch's attention that compute one head of the model's size here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    q = torch.zeros(1, 1, 64, 128, device=device, dtype=dtype)
    works = []
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        if not hasattr(SDPBackend, name):
            continue
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                torch.nn.functional.scaled_dot_product_attention(q, q, q)
        except RuntimeError:
            continue
        works.append(name.removesuffix("_ATTENTION").lower())
    found = f"{', '.join(works)} on the {device.upper() if device == 'cpu' else 'GPU'}"
    if on_gpu and works == ["math"]:
        advice = "only the slow one works; install the current torch"
        return Finding("attention", "warning", found, advice)
    return Finding("attention", "ok", found)


def _ffmpeg() -> Iterator[Finding]:
    from lipcast.media.libraries import ffmpeg_versions, missing_encoders

    found = ", ".join(f"{name} {number}" for name, number in ffmpeg_versions().items())
    missing = missing_encoders()
    if missing:
        advice = "install PyAV from the package registry: pip install --force-reinstall av"
        yield Finding("FFmpeg", "problem", f"no encoder {', '.join(missing)} ({found})", advice)
    else:
        yield Finding("FFmpeg", "ok", found)


def _host() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    cores = f"{psutil.cpu_count()} cores"
    yield Finding("CPU", "ok", f"{platform.processor() or platform.machine()}, {cores}")
    found = f"{format_bytes(memory.available)} free of {format_bytes(memory.total)}"
    yield Finding("memory", "ok", found)
    folder = cache_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    low = free < _LOW_DISK_BYTES
    advice = "free some space, or set LIPCAST_HOME to another place" if low else ""
    yield Finding("disk", "warning" if low else "ok", f"{format_bytes(free)} free", advice)
