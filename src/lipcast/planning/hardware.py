"""What GPUs can do: a table of cards.

Output: `Hardware` by name (`gpu("rtx4090")`) or by the words of a driver.
Rates of the H100 were measured; every other card's are its data sheet times the efficiency
that the H100 reached against its own data sheet, and say so in `source`.
Nothing here looks at the machine it runs on.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Literal

from lipcast.config.gpu_options import KernelChoice, KernelName
from lipcast.config.units import GIB
from lipcast.errors import UsageError

DISK_BYTES_PER_S = 2.5e9
"""Assumed sequential read of an NVMe drive."""

GPU_RESERVE_BYTES = 750 * 2**20
"""CUDA context, cuBLAS workspaces and what the allocator cannot reuse; 663 MiB measured on an
H100."""

# Reached on one H100 SXM with the model's own shapes, sustained at its power limit, over its data
# sheet.
_GEMM_BF16_EFFICIENCY = 700 / 989
_GEMM_FP8_EFFICIENCY = 1310 / 1979
_ATTENTION_EFFICIENCY = 530 / 989
_MEMORY_EFFICIENCY = 3004 / 3350
_LINK_EFFICIENCY = 54.5 / 63
_PEER_EFFICIENCY = 0.8
"""GPU to GPU; assumed. Without NVLink the bytes go through host memory: half the link's rate."""
_VISIBLE_MEMORY = 0.985
"""What the driver leaves of the memory on the box."""

Source = Literal["measured", "data sheet × efficiency", "given"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of GPU. Rates are sustained ones: FLOP/s and bytes/s that real kernels reach."""

    name: str
    label: str
    memory_bytes: int
    bf16_flops: float
    fp8_flops: float
    """Row-wise scaled fp8 matrix products; 0 where the GPU has none (weights are then
    dequantised)."""
    attention_flops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Pinned host memory to the GPU."""
    peer_bytes_per_s: float
    """GPU to GPU."""
    disk_bytes_per_s: float = DISK_BYTES_PER_S
    source: Source = "given"
    reserve_bytes: int = GPU_RESERVE_BYTES
    """What a process takes of the device beside tensors."""
    kernels: KernelName = "triton"
    """What computes whatever is no matrix product."""

    @property
    def has_fp8(self) -> bool:
        return self.fp8_flops > 0


@dataclass(frozen=True, slots=True)
class _Sheet:
    """One data sheet: dense tensor TFLOP/s with fp32 accumulation, GB/s one way."""

    label: str
    memory_gib: float
    bf16: float
    fp8: float
    memory_gbs: float
    link_gbs: float
    nvlink_gbs: float = 0.0

    def hardware(self, name: str) -> Hardware:
        link = self.link_gbs * 1e9 * _LINK_EFFICIENCY
        nvlink = self.nvlink_gbs * 1e9 * _PEER_EFFICIENCY
        return Hardware(
            name=name,
            label=self.label,
            memory_bytes=int(self.memory_gib * _VISIBLE_MEMORY * GIB),
            bf16_flops=self.bf16 * 1e12 * _GEMM_BF16_EFFICIENCY,
            fp8_flops=self.fp8 * 1e12 * _GEMM_FP8_EFFICIENCY,
            attention_flops=self.bf16 * 1e12 * _ATTENTION_EFFICIENCY,
            memory_bytes_per_s=self.memory_gbs * 1e9 * _MEMORY_EFFICIENCY,
            link_bytes_per_s=link,
            peer_bytes_per_s=nvlink or link / 2,
            source="data sheet × efficiency",
        )


_PCIE3, _PCIE4, _PCIE5 = 15.75, 31.5, 63.0
"""GB/s of 16 lanes."""

_SHEETS = (
    ("rtx3060", _Sheet("GeForce RTX 3060 12GB", 12, 25.5, 0, 360, _PCIE4)),
    ("rtx3070", _Sheet("GeForce RTX 3070 8GB", 8, 40.6, 0, 448, _PCIE4)),
    ("rtx3080", _Sheet("GeForce RTX 3080 10GB", 10, 59.5, 0, 760, _PCIE4)),
    ("rtx3090", _Sheet("GeForce RTX 3090 24GB", 24, 71.0, 0, 936, _PCIE4)),
    ("rtx4060", _Sheet("GeForce RTX 4060 8GB", 8, 30.2, 60.5, 272, _PCIE4 / 2)),
    ("rtx4060ti", _Sheet("GeForce RTX 4060 Ti 16GB", 16, 44.1, 88.2, 288, _PCIE4 / 2)),
    ("rtx4070", _Sheet("GeForce RTX 4070 12GB", 12, 58.3, 116.6, 504, _PCIE4)),
    ("rtx4080", _Sheet("GeForce RTX 4080 16GB", 16, 97.5, 194.9, 717, _PCIE4)),
    ("rtx4090", _Sheet("GeForce RTX 4090 24GB", 24, 165.2, 330.3, 1008, _PCIE4)),
    ("rtx5070", _Sheet("GeForce RTX 5070 12GB", 12, 61.7, 123.5, 672, _PCIE5)),
    ("rtx5080", _Sheet("GeForce RTX 5080 16GB", 16, 112.6, 225.1, 960, _PCIE5)),
    ("rtx5090", _Sheet("GeForce RTX 5090 32GB", 32, 209.5, 419.0, 1792, _PCIE5)),
    ("l4", _Sheet("NVIDIA L4 24GB", 24, 121.0, 242.5, 300, _PCIE4)),
    ("a10", _Sheet("NVIDIA A10 24GB", 24, 125.0, 0, 600, _PCIE4)),
    ("a6000", _Sheet("RTX A6000 48GB", 48, 154.8, 0, 768, _PCIE4)),
    ("rtx6000ada", _Sheet("RTX 6000 Ada 48GB", 48, 364.2, 728.5, 960, _PCIE4)),
    ("l40s", _Sheet("NVIDIA L40S 48GB", 48, 362.0, 733.0, 864, _PCIE4)),
    ("a100-40", _Sheet("A100 SXM 40GB", 40, 312.0, 0, 1555, _PCIE4, 300)),
    ("a100-80", _Sheet("A100 SXM 80GB", 80, 312.0, 0, 2039, _PCIE4, 300)),
    ("h200", _Sheet("H200 SXM 141GB", 131.3, 989.0, 1979.0, 4800, _PCIE5, 450)),
    ("b200", _Sheet("B200 SXM 180GB", 167.6, 2250.0, 4500.0, 8000, _PCIE5, 900)),
)
_H100 = Hardware(
    name="h100",
    label="H100 SXM 80GB",
    memory_bytes=int(79.18 * GIB),
    bf16_flops=0.70e15,
    fp8_flops=1.31e15,
    attention_flops=0.53e15,
    memory_bytes_per_s=3.004e12,
    link_bytes_per_s=54.5e9,
    peer_bytes_per_s=360e9,
    source="measured",
)
CPU = Hardware(
    name="cpu",
    label="a CPU, its memory taken as a device's",
    memory_bytes=2**50,
    bf16_flops=1e12,
    fp8_flops=0.0,
    attention_flops=0.3e12,
    memory_bytes_per_s=50e9,
    link_bytes_per_s=10e9,
    peer_bytes_per_s=10e9,
    reserve_bytes=0,
    kernels="plain",
)
"""Orders of magnitude only: placements on a CPU are for trying them out."""
_ALIASES = tuple((number, f"rtx{number}") for number in ("3090", "4070", "4080", "4090", "5090"))


def gpu_names() -> tuple[str, ...]:
    """The cards of the table, smallest memory first."""
    names = (*(name for name, _ in _SHEETS), _H100.name)
    return tuple(sorted(names, key=lambda name: (gpu(name).memory_bytes, name)))


def gpu(name: str) -> Hardware:
    """A card by name: "rtx4090", "RTX 4090", "a100" (80 GB). Raises UsageError with the nearest
    names."""
    key = re.sub(r"[\s_]|nvidia|geforce", "", name.lower())
    key = {**dict(_ALIASES), "a100": "a100-80"}.get(key, key)
    if key == _H100.name:
        return _H100
    sheets = dict(_SHEETS)
    if key in sheets:
        return sheets[key].hardware(key)
    known = (*sheets, _H100.name)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.3) or known
    raise UsageError(f'gpu: expected one of {", ".join(near)}, got "{name}"')


def gpu_described(description: str, memory_bytes: int) -> Hardware:
    """The card that a driver describes ("NVIDIA H100 80GB HBM3"), with the memory it reports.

    Raises UsageError for a card that is not in the table.
    """
    words = re.sub(r"[\s_]|nvidia|geforce", "", description.lower())
    known = sorted((n for n in gpu_names() if n.split("-")[0] in words), key=len, reverse=True)
    if not known:
        raise UsageError(
            f'gpu: "{description}" is not in the table; name a card like it with --gpu, '
            f"one of {', '.join(gpu_names())}"
        )
    longest = [name for name in known if len(name.split("-")[0]) == len(known[0].split("-")[0])]
    near = min(longest, key=lambda name: abs(gpu(name).memory_bytes - memory_bytes))
    return replace(gpu(near), label=description, memory_bytes=memory_bytes)


def expected_kernels(hardware: Hardware, choice: KernelChoice) -> Hardware:
    """Return the hardware with the kernels that a choice leads to where they are not tried out."""
    return hardware if choice == "auto" else replace(hardware, kernels=choice)
