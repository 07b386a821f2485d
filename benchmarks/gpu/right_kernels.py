"""Every fused kernel on the device, against its plain twin on the same device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpu.products import compare_products
from gpu.report import Report, Settings
from lipcast.config.models import DiTConfig
from lipcast.models.attention_backends import SDPA
from lipcast.models.kernels.choice import choose_kernels
from lipcast.models.kernels.fused import FusedKernels
from lipcast.models.kernels.plain import Kernels, Modulation, Remembered, RowFormat
from lipcast.models.kv_codec import kv_codec
from lipcast.models.kv_ring import KVRing, RingLayout
from lipcast.models.layers import QueryKeyNorms, RMSNorm
from lipcast.models.quant_formats import QuantisedRows, Rows
from lipcast.models.rope import Rotary
from lipcast.models.sink import Sink, SinkLayout, SinkPlanes

_ERROR = {"exact": 1e-5, "bf16": 4e-3, "fp8": 2e-2, "attention": 8e-3}
"""Largest difference, relative to the norm: neighbours in the format that is stored, and few of them."""


def kernels(settings: Settings, report: Report) -> None:
    """Rows, rings and attention; in place, joined and by parts, whatever the card prefers."""
    chosen = choose_kernels("auto", settings.device, DiTConfig())
    report.figure("kernels", f"{chosen.kernels.name}: {chosen.reason}")
    if chosen.kernels.name != "triton":
        report.skip("fused kernels compute what plain ones do", chosen.reason)
        return
    torch.manual_seed(0)
    capability = torch.cuda.get_device_capability(settings.device)
    frames, tokens, heads, hidden = 3, 1056, (40, 128), 13_824
    with torch.inference_mode(), torch.device(settings.device):
        compare_products(report, FusedKernels(capability))
        _rows(report, FusedKernels(capability), (frames, tokens, heads[0] * heads[1]), hidden)
        for precision in ("bf16", "fp8", "int4"):
            for how, fused in _ways(capability, precision).items():
                _ring(report, fused, precision, tokens, heads, how=how)


def _ways(capability: tuple[int, int], precision: str) -> dict[str, FusedKernels]:
    """In place, joined, and a plain ring part by part."""
    ways = {
        "in place": FusedKernels(capability, in_place=True),
        "joined": FusedKernels(capability, in_place=False, merges=False),
    }
    if precision == "bf16":
        ways["by parts"] = FusedKernels(capability, in_place=False, attention=SDPA)
    return ways


def _rows(report: Report, fused: Kernels, sizes: tuple[int, int, int], hidden: int) -> None:
    frames, tokens, dim = sizes
    x, branch = torch.randn(sizes) * 4, torch.randn(sizes).bfloat16()
    norm = Modulation(torch.randn(frames, 1, dim), torch.randn(frames, 1, dim), 1e-6)
    inner = torch.randn(frames, tokens, hidden).bfloat16()
    gate, weights = torch.randn(frames, 1, dim), _rms(dim)
    plain = Kernels()
    for form in (RowFormat(torch.bfloat16), RowFormat(torch.bfloat16, fp8=True)):
        kind = "fp8" if form.fp8 else "bf16"
        pairs = [k.add_normalise(x, branch, gate, norm, form) for k in (fused, plain)]
        _claim(report, "residual and gate", [pair[0] for pair in pairs], "exact")
        _claim(report, f"norm and modulation, {kind}", [pair[1] for pair in pairs], kind)
        _claim(report, f"GELU, {kind}", [k.gelu(inner, form) for k in (fused, plain)], kind)
        _claim(report, f"rows, {kind}", [k.rows(branch, form) for k in (fused, plain)], kind)
    _claim(report, "RMS norm", [k.rms_norm(branch, weights) for k in (fused, plain)], "bf16")


def _ring(
    report: Report,
    fused: Kernels,
    precision: Any,
    tokens: int,
    heads: tuple[int, int],
    *,
    how: str,
) -> None:
    """Six blocks into a window of five latent frames: it fills and wraps."""
    how = f"{precision} ring, {how}"
    found = [_attended(k, precision, tokens, heads) for k in (fused, Kernels())]
    for name, pair in zip(
        ("queries", "keys", "values", "output"), zip(*found, strict=True), strict=True
    ):
        _claim(report, f"{how}: {name}", list(pair), "attention" if name == "output" else "fp8")


def _attended(
    kernels: Kernels, precision: Any, tokens: int, heads: tuple[int, int]
) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    device = torch.get_default_device()
    codec = kv_codec(precision, num_heads=heads[0], head_dim=heads[1])
    ring = KVRing.allocate(RingLayout(codec, 5, tokens), num_layers=1, device=device)
    layout = SinkLayout(tokens, 3 * tokens // 2, *heads, torch.bfloat16)
    sink = Sink.allocate(layout, num_layers=1, device=device)
    lengths = layout.num_ref, layout.num_motion, layout.num_tokens
    sink.keep(0, SinkPlanes(*(torch.randn(n, *heads).bfloat16() for n in lengths)))
    placed = sink.place(_table(heads, 30, 1, tokens), None)
    norms = QueryKeyNorms(_rms(heads[0] * heads[1]), _rms(heads[0] * heads[1]))
    for block in range(2):
        q, k, v = torch.randn(3, 3 * tokens, *heads).bfloat16()
        remembered = Remembered(ring, placed, 0, 3 * block + 3)
        table = _table(heads, 3 * block, 3, tokens)
        q = kernels.rotate_and_write(q, k, v, norms, table, remembered)
    return q, *kernels.joined(q, remembered), kernels.attend(q, remembered)


def _table(heads: tuple[int, int], first: int, frames: int, tokens: int) -> Any:
    with torch.device("cpu"):
        table = Rotary(heads[1]).video(first, frames, 1, tokens)
    return table.to(torch.get_default_device())


def _rms(dim: int) -> RMSNorm:
    norm = RMSNorm(dim, 1e-6).requires_grad_(False)
    norm.weight.data = torch.randn(dim).bfloat16()
    return norm


def _claim(report: Report, name: str, pair: list[Rows], kind: str) -> None:
    text = f"{name}: the fused kernel is within {_ERROR[kind]:.1%} of the plain one"
    with report.attempt(text):
        one, other = (x.restore() if isinstance(x, QuantisedRows) else x for x in pair)
        error = float((one.double() - other.double()).norm() / other.double().norm())
        report.claim(text, error <= _ERROR[kind], error)
