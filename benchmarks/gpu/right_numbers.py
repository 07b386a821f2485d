"""Right or wrong, below the level of videos: the driver, fp8 products, stored forms, attention, the VAE.

Every number of the device is compared with the same arithmetic on the CPU, or with float64.
"""

from __future__ import annotations

import mmap
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import get_args
from unittest import mock

import torch
from torch import Tensor, nn

import lipcast
from gpu.report import Report, Settings
from gpu.timing import median_ms
from lipcast.config.gpu_options import KernelName
from lipcast.config.precision import StoredPrecision
from lipcast.memory.pinned import PinnedMaker
from lipcast.models.attention import attend
from lipcast.models.kv_codec import kv_codec
from lipcast.models.quant_formats import quantise_rows_fp4
from lipcast.models.vae import VideoVAE
from lipcast.weights.fp4 import has_fp4_matmul
from lipcast.weights.fp8 import has_fp8_matmul
from lipcast.weights.quant_linear import QuantLinear, use_products_of_device
from lipcast.weights.schemes import SCHEMES

_SMI = (
    "name", "driver_version", "clocks.max.sm", "power.limit", "memory.total", "memory.free",
    "pcie.link.gen.max",
)  # fmt: skip
_PIN_BYTES = 1 << 30
_ROWS = (15, 45, 48, 512, 1152, 3168, 9504)
_MATRICES = ((5120, 5120), (5120, 13824), (13824, 5120), (5120, 15360))
"""(in, out)."""
_FP8_ERROR = 0.04
"""Of the product, relative, against float64 with unrounded activations; 2.6 % are expected."""
_FP4_ERROR = 0.01
"""Of the product, relative, against float64 with the numbers that it multiplies."""


def environment(settings: Settings, report: Report) -> None:
    """Versions and the card; a refused pin leaves the device usable."""
    report.figure("python", platform.python_version())
    report.figure("torch", torch.__version__)
    if not settings.is_cuda:
        report.skip("a refused pin leaves the device usable", "no CUDA device")
        return
    report.figure("cuda", torch.version.cuda)
    report.figure("cudnn", torch.backends.cudnn.version())
    query = [f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"]
    shown = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=False)
    report.figure("card", dict(zip(_SMI, shown.stdout.strip().split(", "), strict=False)))
    with report.attempt("a GiB of host memory can be pinned"):
        begin = time.perf_counter()
        maker = PinnedMaker(settings.device)
        buffer = maker.make(_PIN_BYTES)
        report.claim("a GiB of host memory can be pinned", True, time.perf_counter() - begin)
        _refuse_a_pin(settings, report)
        maker.drop(buffer)


def _refuse_a_pin(settings: Settings, report: Report) -> None:
    """Pages that are registered already are refused: like any refusal, it must cost one error only."""
    text = "a refused pin leaves the device usable"
    with report.attempt(text), _same_pages_again():
        maker = PinnedMaker(settings.device)
        first = maker.make(1 << 20)
        try:
            maker.make(1 << 20)
            refused = "was not refused"
        except torch.OutOfMemoryError:
            refused = "refused with OutOfMemoryError"
        total = int((torch.ones(8, device=settings.device) + 1).sum())
        report.claim(text, total == 16 and refused.startswith("refused"), refused)
        maker.drop(first)


@contextmanager
def _same_pages_again() -> Iterator[None]:
    """Every anonymous mapping is the same one."""
    pages = mmap.mmap(-1, 1 << 20)
    with mock.patch("lipcast.memory.pinned.mmap.mmap", return_value=pages):
        yield


def fp8_rows(settings: Settings, report: Report) -> None:
    """Fp8 layers at the model's own shapes, few rows included."""
    report.figure("fp8 matrix units", has_fp8_matmul(settings.device))
    _stored_rows("fp8", "float64", _FP8_ERROR, settings, report)


def fp4_rows(settings: Settings, report: Report) -> None:
    """NVFP4 layers at the model's own shapes, against their emulation: the same numbers, in float64."""
    report.figure("NVFP4 matrix units", has_fp4_matmul(settings.device))
    _stored_rows("nvfp4", "its emulation", _FP4_ERROR, settings, report, emulate=True)


def _stored_rows(
    precision: StoredPrecision,
    twin: str,
    most: float,
    settings: Settings,
    report: Report,
    *,
    emulate: bool = False,
) -> None:
    """Claim that layers are within `most` of their twin; `emulate`: which gets the input that they round."""
    rows, matrices = ((1, 15, 48), ((64, 128), (128, 64)))
    if settings.is_full:
        rows, matrices = _ROWS, _MATRICES
    milliseconds = {}
    for num_in, num_out in matrices:
        layer, weight = _layer(precision, num_in, num_out, settings.device)
        for num_rows in rows:
            text = f"{precision} {num_rows} x {num_in} x {num_out} is within {most:.0%} of {twin}"
            with report.attempt(text), torch.inference_mode():
                x = torch.randn(num_rows, num_in, dtype=torch.bfloat16, device=settings.device)
                fed = quantise_rows_fp4(x).restore() if emulate and layer.multiplies else x
                exact = fed.double() @ weight.double().t() + layer.bias.double()
                error = _relative(layer(x), exact)
                report.claim(text, error < most, error)
                found = median_ms(partial(layer, x), settings)
                milliseconds[f"{num_rows}x{num_in}x{num_out}"] = found
    report.figure("milliseconds", milliseconds)


def _layer(
    precision: StoredPrecision, num_in: int, num_out: int, device: torch.device
) -> tuple[QuantLinear, Tensor]:
    """A layer, and the weight that it stores."""
    scheme = SCHEMES[precision]
    linear = nn.Linear(num_in, num_out, dtype=torch.bfloat16, device=device).requires_grad_(False)
    parts = scheme.quantise(linear.weight.float())
    layer = QuantLinear(linear, scheme, dtype=torch.bfloat16)
    layer.fill(parts)
    holder = nn.Sequential(layer)
    use_products_of_device(holder, device)
    return layer, scheme.dequantise(parts, torch.float32)


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def stored_forms(settings: Settings, report: Report) -> None:
    """Weights and rings are stored with the same bits whatever computes them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 512, generator=generator)
    for name, scheme in SCHEMES.items():
        _compare(report, f"{name} weights", settings, _stored_weight(scheme), weight)
    tokens = torch.randn(96, 4, 128, generator=generator).bfloat16()
    for precision in ("bf16", "fp8", "int4"):
        codec = kv_codec(precision, num_heads=4, head_dim=128)
        _compare(report, f"{precision} rings", settings, _stored_tokens(codec), tokens)


def _stored_weight(scheme: object) -> Callable[[Tensor], list[Tensor]]:
    def store(weight: Tensor) -> list[Tensor]:
        parts = scheme.quantise(weight)  # type: ignore[attr-defined]
        restored = scheme.dequantise(parts, torch.bfloat16)  # type: ignore[attr-defined]
        return [*parts.values(), restored]

    return store


def _stored_tokens(codec: object) -> Callable[[Tensor], list[Tensor]]:
    def store(tokens: Tensor) -> list[Tensor]:
        shapes = codec.planes  # type: ignore[attr-defined]
        planes = [
            encoded.to(plane.dtype)
            for plane, encoded in zip(shapes, codec.encode(tokens), strict=True)  # type: ignore[attr-defined]
        ]
        restored = torch.empty_like(tokens)
        codec.decode_into(planes, restored)  # type: ignore[attr-defined]
        return [*planes, restored]

    return store


def _compare(
    report: Report,
    name: str,
    settings: Settings,
    store: Callable[[Tensor], list[Tensor]],
    x: Tensor,
) -> None:
    text = f"{name} are stored and read with the same bits as on a CPU"
    with report.attempt(text):
        here, there = store(x), store(x.to(settings.device))
        differing = [
            int((a.view(torch.uint8) != b.cpu().view(torch.uint8)).sum())
            for a, b in zip(here, there, strict=True)
        ]
        report.claim(text, not any(differing), f"{sum(differing)} bytes differ")


def attention(settings: Settings, report: Report) -> None:
    """Attention against float64, and which kernel computes it."""
    q = torch.randn(96, 4, 128, device=settings.device).bfloat16()
    k, v = (torch.randn(300, 4, 128, device=settings.device).bfloat16() for _ in range(2))
    with report.attempt("attention is within 1 % of float64"), torch.inference_mode():
        weights = torch.einsum("tnd,snd->nts", q.double(), k.double()) / 128**0.5
        exact = torch.einsum("nts,snd->tnd", weights.softmax(-1), v.double())
        error = _relative(attend(q, k, v), exact)
        report.claim("attention is within 1 % of float64", error < 0.01, error)
    if not (settings.is_cuda and settings.is_full):
        report.skip("attention runs in a fused kernel", "needs a GPU and the full shapes")
        return
    shapes = (3168, 15_312, 15_312)
    q, k, v = (torch.randn(n, 40, 128, device=settings.device).bfloat16() for n in shapes)
    with torch.inference_mode():
        names = _kernel_names(lambda: attend(q, k, v))
        report.figure("kernels", names)
        fused = any(word in name for name in names for word in ("flash", "cudnn", "fmha", "attend"))
        report.claim("attention runs in a fused kernel", fused, ", ".join(names)[:150])
        report.figure("attend ms", median_ms(lambda: attend(q, k, v), settings))
        for with_lse in (False, True):
            heads = [x[None].transpose(1, 2) for x in (q, k, v)]
            milliseconds = median_ms(partial(_cudnn, *heads, lse=with_lse), settings)
            report.figure(f"cuDNN {'with' if with_lse else 'without'} log-sum-exp ms", milliseconds)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, *, lse: bool) -> Tensor:
    found: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, lse)[0]
    return found


def _kernel_names(work: Callable[[], object]) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    work()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return sorted({event.key for event in profiler.key_averages()})


def autoencoder(settings: Settings, report: Report) -> None:
    """The embedded model's decoder: against float32 on the CPU, and streamed against whole."""
    twin = lipcast.load("tiny", device="cpu", precision="fp32").bundle.vae
    shape = (1, twin.config.z_dim, 4, 16, 16)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = twin.decode(latent).double()
        for kernels in get_args(KernelName) if settings.is_cuda else ("plain",):
            precision = "bf16" if settings.is_cuda else "fp32"
            device = str(settings.device)
            model = lipcast.load("tiny", device=device, precision=precision, kernels=kernels)
            _decode(model.bundle.vae, latent.to(settings.device), exact, kernels, report)


def _decode(vae: VideoVAE, latent: Tensor, exact: Tensor, kernels: str, report: Report) -> None:
    whole = vae.decode(latent)
    error = _relative(whole.cpu(), exact)
    report.claim(f"{kernels}: decoded frames are within 5 % of float32", error < 0.05, error)
    state = vae.new_decoder_state()
    frames = [vae.decode_chunk(z, state) for z in latent.split([1, 2, 1], dim=2)]
    equal = torch.equal(torch.cat(frames, dim=2), whole)
    text = f"{kernels}: a stream of latents decodes to the same bits as all at once"
    report.claim(text, equal, equal)
    again = torch.equal(vae.decode(latent), whole)
    report.claim(f"{kernels}: decoding twice gives the same bits", again, again)
