"""Measured rates of a GPU, in a fraction of a second.

Input: a CUDA device. Output: `Hardware` for the planner: the rates of a known GPU with its link as measured,
or all rates measured if the GPU is unknown. Everything is measured on the device asked for, whichever device
is current.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from lipcast.config.precision import Precision
from lipcast.memory.pinned import PinnedMaker
from lipcast.models.quant_formats import FP8, StoredWeight, quantise_rows_fp4
from lipcast.planning.hardware import FIRST_BF16, Hardware, known_gpu
from lipcast.weights.fp4 import linear_fp4
from lipcast.weights.fp8 import linear_row_wise
from lipcast.weights.products import LayerSize
from lipcast.weights.quant_linear import multiplies_directly

_COPY_BYTES = 256 << 20
_NUM_RUNS = 5
_ROWS, _SIDE = 3168, 5120
"""Shape of a matrix product of the published model."""
_HEADS, _HEAD_DIM, _KEYS = 40, 128, 15_312


def describe_gpu(
    device: torch.device,
    layer_sizes: Iterable[LayerSize] = (),
    *,
    precision: Precision | None = None,
) -> Hardware:
    """Return the memory of a GPU, its link as measured, and its other rates, known or measured.

    Whether fp8 weights of a model with these (inputs, outputs) are multiplied is tried out, as it is when
    they are loaded: the planner counts with what the layers will do. So are those in NVFP4, where
    `precision` asks for them: no plan turns to them by itself.
    """
    properties = torch.cuda.get_device_properties(device)
    sizes = frozenset(layer_sizes)
    fp8 = multiplies_directly(device, "fp8", sizes)
    fp4 = precision == "nvfp4" and multiplies_directly(device, "nvfp4", sizes)
    link = link_bytes_per_s(device)
    found = known_gpu(properties.name, properties.total_memory)
    if found is None:
        with torch.cuda.device(device):
            found = _measured(device, properties.name, properties.total_memory, fp8=fp8, fp4=fp4)
    return replace(
        found,
        link_bytes_per_s=link,
        peer_bytes_per_s=found.peer_bytes_per_s or link / 2,
        multiplies_fp8=fp8,
        multiplies_fp4=fp4,
    )


def link_bytes_per_s(device: torch.device) -> float:
    """Return the measured rate of copies from pinned host memory to a GPU."""
    maker = PinnedMaker(device)
    with torch.cuda.device(device):
        host = maker.make(_COPY_BYTES)
        try:
            target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
            seconds = _seconds(lambda: target.copy_(host, non_blocking=True))
        finally:
            maker.drop(host)
    return _COPY_BYTES / seconds


def _measured(
    device: torch.device, name: str, memory_bytes: int, *, fp8: bool, fp4: bool
) -> Hardware:
    has_bf16 = torch.cuda.get_device_capability(device) >= FIRST_BF16
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    x = torch.randn(_ROWS, _SIDE, dtype=dtype, device=device)
    weight = torch.randn(_SIDE, _SIDE, dtype=dtype, device=device)
    products = 2.0 * _ROWS * _SIDE * _SIDE
    fp8_flops = fp4_flops = 0.0
    if fp8:
        scale = torch.ones(_SIDE, device=device)
        fp8_weight = weight.to(FP8)
        fp8_flops = products / _seconds(lambda: linear_row_wise(x, fp8_weight, scale, None))
    if fp4:
        rows, stored = quantise_rows_fp4(x), quantise_rows_fp4(weight)
        fp4_weight = StoredWeight(stored.numbers, stored.scale, tensor_scale=stored.tensor_scale)
        fp4_flops = products / _seconds(lambda: linear_fp4(rows, fp4_weight, None))
    flops = products / _seconds(lambda: functional.linear(x, weight))
    return Hardware(
        name="measured",
        label=name,
        memory_bytes=memory_bytes,
        bf16_flops=flops if has_bf16 else 2 * flops,
        fp8_flops=fp8_flops,
        fp4_flops=fp4_flops,
        attention_flops=_attention_flops(device, dtype),
        memory_bytes_per_s=2 * weight.nbytes / _seconds(weight.clone),
        link_bytes_per_s=0.0,
        peer_bytes_per_s=0.0,
        source="measured",
        has_bf16=has_bf16,
    )


def _attention_flops(device: torch.device, dtype: torch.dtype) -> float:
    shape = 1, _HEADS, _ROWS, _HEAD_DIM
    q = torch.randn(shape, dtype=dtype, device=device)
    k = torch.randn(1, _HEADS, _KEYS, _HEAD_DIM, dtype=dtype, device=device)
    seconds = _seconds(lambda: functional.scaled_dot_product_attention(q, k, k))
    return 4.0 * _ROWS * _KEYS * _HEADS * _HEAD_DIM / seconds


def _seconds(work: Callable[[], Tensor]) -> float:
    """Return the median of a few runs on the current stream of the current device."""
    times: list[float] = []
    for _ in range(_NUM_RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return sorted(times)[len(times) // 2]
