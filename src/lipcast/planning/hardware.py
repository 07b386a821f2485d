"""What GPUs can do: a table of cards.

Output: `Hardware` by name (`gpu("rtx4090")`), by the words of a driver, or for nothing but a size of memory.
Rates of the H100 were measured; every other card's are its data sheet times the efficiency that the H100
reached against its own data sheet. `source` says so, and of which card the rates are where a card is not in
the table. Nothing here looks at the machine it runs on.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from lipcast.config.gpu_options import AttentionChoice, KernelChoice, KernelName
from lipcast.config.units import GIB, format_bytes
from lipcast.errors import UsageError

DISK_BYTES_PER_S = 2.5e9
"""Assumed sequential read of an NVMe drive."""

CONTEXT_BYTES = 512 * 2**20
"""The CUDA context of a process."""
WORKSPACE_BYTES = 64 * 2**20
"""Two workspaces of cuBLAS, one for each stream that multiplies."""
FRAGMENTATION_BYTES = 174 * 2**20
"""What the allocator cannot reuse. Measured on an H100: 663 MiB, these three together."""

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

Capability = tuple[int, int]
"""CUDA compute capability."""
FIRST_BF16: Capability = (8, 0)
"""From here on tensor cores multiply bf16; older cards compute in fp32."""
CUDNN_MAJORS = (9, 10)
"""Compute capabilities (Hopper, data-centre Blackwell) on which PyTorch prefers cuDNN's attention."""
FP4_MAJORS = (10, 12)
"""Compute capabilities (data-centre and GeForce Blackwell) whose tensor cores multiply NVFP4."""
_NO_ROW_WISE_FP8: Capability = (12, 0)
"""Here cuBLAS multiplies fp8 only with one scale per tensor, which the engine does not use."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of GPU. Rates are sustained ones: FLOP/s and bytes/s that real kernels reach."""

    name: str
    label: str
    memory_bytes: int
    bf16_flops: float
    """Twice the rate in fp32, on a card that has no bf16."""
    fp8_flops: float
    """Row-wise scaled fp8 matrix products; 0 where the GPU has none."""
    attention_flops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Pinned host memory to the GPU."""
    peer_bytes_per_s: float
    """GPU to GPU."""
    disk_bytes_per_s: float = DISK_BYTES_PER_S
    source: str = "given"
    """Where the rates come from."""
    has_cuda: bool = True
    has_bf16: bool = True
    multiplies_fp8: bool = True
    """Whether the engine multiplies 8-bit floats here; else it dequantises fp8 weights before use."""
    fp4_flops: float = 0.0
    """NVFP4 matrix products; 0 where the GPU has none."""
    multiplies_fp4: bool = True
    """Whether the engine multiplies NVFP4 here; else it dequantises such weights before use."""
    kernels: KernelName = "triton"
    """What computes whatever is no matrix product."""
    prefers_cudnn: bool = True
    """Whether PyTorch's attention is cuDNN's, faster than the fused kernel that reads keys in place."""
    attention: AttentionChoice = "auto"
    """What was asked for to compute self-attention."""

    @property
    def has_fp8(self) -> bool:
        """Whether fp8 weights are multiplied as they are."""
        return self.fp8_flops > 0 and self.multiplies_fp8

    @property
    def has_fp4(self) -> bool:
        """Whether NVFP4 weights are multiplied as they are."""
        return self.fp4_flops > 0 and self.multiplies_fp4


@dataclass(frozen=True, slots=True)
class _Sheet:
    """One data sheet: dense tensor TFLOP/s with fp32 accumulation, GB/s one way."""

    name: str
    """Cards of one name that differ in memory have it after a dash."""
    label: str
    memory_gib: float
    bf16: float
    """Without bf16: twice the fp32."""
    fp8: float
    memory_gbs: float
    link_gbs: float
    nvlink_gbs: float = 0.0

    @property
    def memory_bytes(self) -> int:
        """Memory that programs can use."""
        return int(self.memory_gib * _VISIBLE_MEMORY * GIB)

    def _fp4(self, capability: Capability) -> float:
        if capability[0] not in FP4_MAJORS:
            return 0.0
        # GeForce cards sum fp8 in float32 at half their rate, NVFP4 at the whole one.
        return self.fp8 * (4 if self.label.startswith("GeForce") else 2)

    def hardware(self, capability: Capability) -> Hardware:
        link = self.link_gbs * 1e9 * _LINK_EFFICIENCY
        nvlink = self.nvlink_gbs * 1e9 * _PEER_EFFICIENCY
        has_bf16 = capability >= FIRST_BF16
        return Hardware(
            name=self.name,
            label=self.label,
            memory_bytes=self.memory_bytes,
            bf16_flops=self.bf16 * 1e12 * _GEMM_BF16_EFFICIENCY,
            fp8_flops=self.fp8 * 1e12 * _GEMM_FP8_EFFICIENCY,
            attention_flops=self.bf16 * 1e12 * _ATTENTION_EFFICIENCY / (1 if has_bf16 else 2),
            memory_bytes_per_s=self.memory_gbs * 1e9 * _MEMORY_EFFICIENCY,
            link_bytes_per_s=link,
            peer_bytes_per_s=nvlink or link / 2,
            source="data sheet × efficiency",
            has_bf16=has_bf16,
            multiplies_fp8=capability[0] != _NO_ROW_WISE_FP8[0],
            fp4_flops=self._fp4(capability) * 1e12 * _GEMM_FP8_EFFICIENCY,
            prefers_cudnn=capability[0] in CUDNN_MAJORS,
        )


_PCIE3, _PCIE4, _PCIE5 = 15.75, 31.5, 63.0
"""GB/s of 16 lanes."""

_SHEETS: Mapping[Capability, tuple[_Sheet, ...]] = MappingProxyType({
    (7, 0): (
        _Sheet("v100", "Tesla V100 SXM 32GB", 32, 31.4, 0, 900, _PCIE3, 150),
        _Sheet("v100pcie", "Tesla V100 PCIe 32GB", 32, 28.0, 0, 900, _PCIE3),
    ),
    (7, 5): (
        _Sheet("t4", "Tesla T4 16GB", 15, 16.2, 0, 320, _PCIE3),
        _Sheet("rtx2080ti", "GeForce RTX 2080 Ti 11GB", 11, 26.9, 0, 616, _PCIE3),
        _Sheet("titanrtx", "TITAN RTX 24GB", 24, 32.6, 0, 672, _PCIE3),
    ),
    (8, 0): (
        _Sheet("a30", "NVIDIA A30 24GB", 24, 165.0, 0, 933, _PCIE4),
        _Sheet("a100-40", "A100 SXM 40GB", 40, 312.0, 0, 1555, _PCIE4, 300),
        _Sheet("a100-80", "A100 SXM 80GB", 80, 312.0, 0, 2039, _PCIE4, 300),
        _Sheet("a100pcie-40", "A100 PCIe 40GB", 40, 312.0, 0, 1555, _PCIE4),
        _Sheet("a100pcie-80", "A100 PCIe 80GB", 80, 312.0, 0, 1935, _PCIE4),
    ),
    (8, 6): (
        _Sheet("rtx3060", "GeForce RTX 3060 12GB", 12, 25.5, 0, 360, _PCIE4),
        _Sheet("rtx3060ti", "GeForce RTX 3060 Ti 8GB", 8, 32.4, 0, 448, _PCIE4),
        _Sheet("rtx3070", "GeForce RTX 3070 8GB", 8, 40.6, 0, 448, _PCIE4),
        _Sheet("rtx3070ti", "GeForce RTX 3070 Ti 8GB", 8, 43.5, 0, 608, _PCIE4),
        _Sheet("rtx3080", "GeForce RTX 3080 10GB", 10, 59.5, 0, 760, _PCIE4),
        _Sheet("rtx3080ti", "GeForce RTX 3080 Ti 12GB", 12, 68.2, 0, 912, _PCIE4),
        _Sheet("rtx3090", "GeForce RTX 3090 24GB", 24, 71.0, 0, 936, _PCIE4),
        _Sheet("rtx3090ti", "GeForce RTX 3090 Ti 24GB", 24, 80.0, 0, 1008, _PCIE4),
        _Sheet("a10", "NVIDIA A10 24GB", 24, 125.0, 0, 600, _PCIE4),
        _Sheet("a10g", "NVIDIA A10G 24GB", 24, 70.0, 0, 600, _PCIE4),
        _Sheet("a4000", "RTX A4000 16GB", 16, 76.7, 0, 448, _PCIE4),
        _Sheet("a5000", "RTX A5000 24GB", 24, 111.1, 0, 768, _PCIE4),
        _Sheet("a6000", "RTX A6000 48GB", 48, 154.8, 0, 768, _PCIE4),
        _Sheet("a40", "NVIDIA A40 48GB", 48, 149.7, 0, 696, _PCIE4),
    ),
    (8, 9): (
        _Sheet("rtx4060", "GeForce RTX 4060 8GB", 8, 30.2, 60.5, 272, _PCIE4 / 2),
        _Sheet("rtx4060ti", "GeForce RTX 4060 Ti 16GB", 16, 44.1, 88.2, 288, _PCIE4 / 2),
        _Sheet("rtx4070", "GeForce RTX 4070 12GB", 12, 58.3, 116.6, 504, _PCIE4),
        _Sheet("rtx4070super", "GeForce RTX 4070 SUPER 12GB", 12, 70.9, 141.8, 504, _PCIE4),
        _Sheet("rtx4070ti", "GeForce RTX 4070 Ti 12GB", 12, 80.2, 160.4, 504, _PCIE4),
        _Sheet("rtx4070tisuper", "GeForce RTX 4070 Ti SUPER 16GB", 16, 88.2, 176.4, 672, _PCIE4),
        _Sheet("rtx4080", "GeForce RTX 4080 16GB", 16, 97.5, 194.9, 717, _PCIE4),
        _Sheet("rtx4080super", "GeForce RTX 4080 SUPER 16GB", 16, 104.4, 208.8, 736, _PCIE4),
        _Sheet("rtx4090", "GeForce RTX 4090 24GB", 24, 165.2, 330.3, 1008, _PCIE4),
        _Sheet("rtx4090d", "GeForce RTX 4090 D 24GB", 24, 147.0, 294.0, 1008, _PCIE4),
        _Sheet("rtx4090laptop", "GeForce RTX 4090 Laptop 16GB", 16, 79.4, 158.8, 576, _PCIE4),
        _Sheet("l4", "NVIDIA L4 24GB", 24, 121.0, 242.5, 300, _PCIE4),
        _Sheet("rtx6000ada", "RTX 6000 Ada 48GB", 48, 364.2, 728.5, 960, _PCIE4),
        _Sheet("l40", "NVIDIA L40 48GB", 48, 181.0, 362.0, 864, _PCIE4),
        _Sheet("l40s", "NVIDIA L40S 48GB", 48, 362.0, 733.0, 864, _PCIE4),
    ),
    (9, 0): (
        _Sheet("h100pcie", "H100 PCIe 80GB", 79.6, 756.0, 1513.0, 2000, _PCIE5),
        _Sheet("h100nvl", "H100 NVL 94GB", 93.6, 835.0, 1671.0, 3938, _PCIE5, 300),
        _Sheet("h20", "H20 SXM 96GB", 95.6, 148.0, 296.0, 4000, _PCIE5, 450),
        _Sheet("h200", "H200 SXM 141GB", 131.3, 989.0, 1979.0, 4800, _PCIE5, 450),
        _Sheet("h200nvl", "H200 NVL 141GB", 131.3, 835.0, 1671.0, 4800, _PCIE5, 450),
    ),
    (10, 0): (_Sheet("b200", "B200 SXM 180GB", 167.6, 2250.0, 4500.0, 8000, _PCIE5, 900),),
    (12, 0): (
        _Sheet("rtx5060ti", "GeForce RTX 5060 Ti 16GB", 16, 47.4, 94.9, 448, _PCIE5 / 2),
        _Sheet("rtx5070", "GeForce RTX 5070 12GB", 12, 61.7, 123.5, 672, _PCIE5),
        _Sheet("rtx5070ti", "GeForce RTX 5070 Ti 16GB", 16, 87.9, 175.8, 896, _PCIE5),
        _Sheet("rtx5080", "GeForce RTX 5080 16GB", 16, 112.6, 225.1, 960, _PCIE5),
        _Sheet("rtx5090", "GeForce RTX 5090 32GB", 32, 209.5, 419.0, 1792, _PCIE5),
        _Sheet("rtxpro6000", "RTX PRO 6000 Blackwell 96GB", 96, 503.8, 1007.6, 1792, _PCIE5),
    ),
})  # fmt: skip
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
    has_cuda=False,
    kernels="plain",
)
"""Orders of magnitude only: placements on a CPU are for trying them out."""

_NOISE = frozenset({
    "nvidia", "geforce", "tesla", "gpu", "graphics", "generation", "edition", "workstation", "server",
    "blackwell",
})  # fmt: skip
"""Words of a driver's description that tell no cards apart."""
_SIZE = re.compile(r"\b(\d+) ?gi?b\b", re.IGNORECASE)
_SIZE_TOLERANCE = 0.1
_VARIANT = re.compile(r"hbm\w*|sxm\d*")


def gpu_names() -> tuple[str, ...]:
    """Return the names of the table's cards, smallest memory first."""
    cards = sorted(_cards(), key=lambda card: (card.memory_bytes, card.name))
    return tuple(card.name for card in cards)


def gpu(name: str) -> Hardware:
    """Return a card by name: "rtx4090", "RTX 4060 Ti 8GB", "a100" (80 GB). Raises UsageError."""
    found = [card for card in _cards() if card.name == name.lower()] or _cards_called(name)
    if found:
        largest = max(found, key=lambda card: card.memory_bytes)
        size = _SIZE.search(name)
        return largest if size is None else _of_size(found, int(size[1]))
    known = [card.name for card in _cards()]
    near = difflib.get_close_matches(_key(name), known, n=3, cutoff=0.3) or known
    raise UsageError(f'gpu: expected one of {", ".join(near)}, got "{name}"')


def known_gpu(description: str, memory_bytes: int) -> Hardware | None:
    """Return the card that a driver describes, with the memory it reports; None if it is not in the table."""
    found = _cards_called(description)
    if not found:
        return None
    near = min(found, key=lambda card: abs(card.memory_bytes - memory_bytes))
    return replace(near, label=description, memory_bytes=memory_bytes)


def gpu_described(
    description: str, memory_bytes: int, capability: Capability | None = None
) -> Hardware:
    """Return the card that a driver describes; of one that is not in the table, a card like it."""
    known = known_gpu(description, memory_bytes)
    if known is not None:
        return known
    return replace(generic_gpu(memory_bytes, capability), label=description)


def generic_gpu(memory_bytes: int, capability: Capability | None = None) -> Hardware:
    """Return a card of that memory, with the rates of a card that is like it and rather slower than faster.

    Of the same compute capability that is the slowest with the next smaller memory; else the slowest of the
    same generation, since cards that share the host's memory are among those.
    """
    cards = _table()
    every = [card for group in cards.values() for card in group if card.has_bf16]
    if capability is None or capability in cards:
        near = every if capability is None else cards[capability]
        fitting = [card.memory_bytes for card in near if card.memory_bytes <= memory_bytes]
        nearest = max(fitting) if fitting else min(card.memory_bytes for card in near)
        near = [card for card in near if card.memory_bytes == nearest]
    else:
        near = [card for c, group in cards.items() if c[0] == capability[0] for card in group]
    like = min(near or every, key=lambda card: card.bf16_flops)
    return replace(
        like,
        name="generic",
        label=f"a card with {format_bytes(memory_bytes)}",
        memory_bytes=memory_bytes,
        has_bf16=like.has_bf16 if capability is None else capability >= FIRST_BF16,
        source=f"assumed, those of {like.label}",
    )


def _of_size(cards: list[Hardware], gib: int) -> Hardware:
    """Return the card with that memory on its box; of one that is not in the table, only the memory."""
    memory_bytes = int(gib * _VISIBLE_MEMORY * GIB)
    near = min(cards, key=lambda card: abs(card.memory_bytes - memory_bytes))
    is_near = abs(near.memory_bytes / memory_bytes - 1) < _SIZE_TOLERANCE
    return near if is_near else replace(near, memory_bytes=memory_bytes)


def _table() -> dict[Capability, list[Hardware]]:
    found = {c: [sheet.hardware(c) for sheet in sheets] for c, sheets in _SHEETS.items()}
    found[9, 0].append(_H100)
    return found


def _cards() -> list[Hardware]:
    return [card for group in _table().values() for card in group]


def _cards_called(description: str) -> list[Hardware]:
    """Return the cards of one name: "4090", "NVIDIA GeForce RTX 4090" or "NVIDIA RTX A6000"."""
    key = _key(description)
    keys = {key, f"rtx{key}", key.removeprefix("rtx") if key.startswith("rtxa") else key}
    return [card for card in _cards() if card.name.split("-")[0] in keys]


def _key(description: str) -> str:
    """Return a card's name as the table has it, without maker, memory and edition."""
    # The H100 that is described with HBM2e is the one for PCIe.
    text = _SIZE.sub("", description.lower()).replace("hbm2e", "pcie").replace("max-q", "maxq")
    words = re.split(r"[\s_-]+", text)
    return "".join(word for word in words if word not in _NOISE and not _VARIANT.fullmatch(word))


def expected_kernels(
    hardware: Hardware, choice: KernelChoice, *, attention: AttentionChoice = "auto"
) -> Hardware:
    """Return the hardware with the kernels that the choices lead to where they are not tried out."""
    kernels = hardware.kernels if choice == "auto" else choice
    return replace(hardware, kernels=kernels, attention=attention)
