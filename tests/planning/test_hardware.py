"""Cards by their names and by a driver's words; cards that no table has; how sizes are written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcast.config.units import GIB, parse_bytes
from lipcast.errors import UsageError
from lipcast.planning.hardware import generic_gpu, gpu, gpu_described, gpu_names, known_gpu


@pytest.mark.parametrize(
    ("description", "mib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H100 PCIe", 81559, "h100pcie"),
        ("NVIDIA H100 80GB HBM2e", 81559, "h100pcie"),
        ("NVIDIA H100 NVL", 95830, "h100nvl"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80"),
        ("NVIDIA A100-PCIE-40GB", 40960, "a100pcie-40"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100pcie-80"),
        ("NVIDIA L4", 23034, "l4"),
        ("NVIDIA L40", 46068, "l40"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("NVIDIA A10", 23028, "a10"),
        ("NVIDIA A10G", 23028, "a10g"),
        ("NVIDIA RTX A6000", 49140, "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx6000ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "rtxpro6000"),
        ("NVIDIA GeForce RTX 5080", 16303, "rtx5080"),
        ("NVIDIA GeForce RTX 5070 Ti", 16303, "rtx5070ti"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "rtx4090laptop"),
        ("NVIDIA GeForce RTX 4070", 12282, "rtx4070"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx4060ti"),
        ("NVIDIA GeForce RTX 3090 Ti", 24564, "rtx3090ti"),
        ("NVIDIA GeForce RTX 3060", 12288, "rtx3060"),
        ("NVIDIA GeForce RTX 2080 Ti", 11264, "rtx2080ti"),
        ("Tesla T4", 15360, "t4"),
        ("Tesla V100-SXM2-16GB", 16384, "v100"),
        ("Tesla V100-PCIE-32GB", 32768, "v100pcie"),
    ],
)
def test_a_card_is_known_by_its_drivers_words(description: str, mib: int, name: str) -> None:
    found = gpu_described(description, mib * 2**20)
    assert found.name == name and found.memory_bytes == mib * 2**20
    assert "assumed" not in found.source


@pytest.mark.parametrize(
    ("description", "gib", "capability", "like"),
    [
        ("NVIDIA GeForce RTX 4080 Laptop GPU", 12, (8, 9), "GeForce RTX 4070 12GB"),
        ("Quadro RTX 6000", 24, (7, 5), "TITAN RTX 24GB"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10, (9, 0), "H100 PCIe 80GB"),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", 24, (12, 0), "GeForce RTX 5060 Ti 16GB"),
        ("NVIDIA B300 SXM6 AC", 268, (10, 3), "B200 SXM 180GB"),
        ("Orin (nvgpu)", 64, (8, 7), "GeForce RTX 3060 12GB"),
        ("NVIDIA GB10", 120, (12, 1), "GeForce RTX 5060 Ti 16GB"),
        ("NVIDIA GeForce GTX 1080 Ti", 11, (6, 1), "GeForce RTX 3060 12GB"),
        ("A card of tomorrow", 12, None, "GeForce RTX 3060 12GB"),
    ],
)
def test_an_unknown_card_is_like_the_nearest(
    description: str, gib: int, capability: tuple[int, int] | None, like: str
) -> None:
    found = gpu_described(description, gib * GIB, capability)
    assert known_gpu(description, gib * GIB) is None
    assert (found.name, found.label) == ("generic", description)
    assert found.memory_bytes == gib * GIB
    assert found.source.startswith("assumed, those of ")
    assert found.source.endswith(like)


@given(st.sampled_from(gpu_names()))
def test_every_card_is_found_by_its_own_label(name: str) -> None:
    card = gpu(name)
    assert gpu_described(card.label, card.memory_bytes).name == name


@given(st.floats(2, 300))
def test_a_generic_card_is_the_slowest_of_its_memory(gib: float) -> None:
    found = generic_gpu(int(gib * GIB))
    cards = [card for name in gpu_names() if (card := gpu(name)).has_bf16]
    like = next(card for card in cards if found.source.endswith(card.label))
    assert found.bf16_flops == like.bf16_flops
    for card in cards:
        if like.memory_bytes < card.memory_bytes:
            assert card.memory_bytes > found.memory_bytes
        assert like.memory_bytes != card.memory_bytes or like.bf16_flops <= card.bf16_flops


def test_cards_before_ampere_have_no_bf16() -> None:
    assert [name for name in gpu_names() if not gpu(name).has_bf16] == [
        "rtx2080ti", "t4", "titanrtx", "v100", "v100pcie",
    ]  # fmt: skip


def test_cards_without_row_wise_products_dequantise() -> None:
    assert not gpu("rtx5090").has_fp8 and gpu("rtx5090").fp8_flops > 0
    assert gpu("rtx4090").has_fp8 and not gpu("rtx3090").has_fp8


def test_only_blackwell_multiplies_nvfp4() -> None:
    assert {name for name in gpu_names() if gpu(name).has_fp4} == {
        "b200", "rtx5060ti", "rtx5070", "rtx5070ti", "rtx5080", "rtx5090", "rtxpro6000",
    }  # fmt: skip
    assert gpu("b200").fp4_flops == 2 * gpu("b200").fp8_flops
    assert gpu("rtx5090").fp4_flops == 4 * gpu("rtx5090").fp8_flops
    assert not replace(gpu("b200"), multiplies_fp4=False).has_fp4


@pytest.mark.parametrize(
    ("name", "card", "gib"),
    [
        ("a100", "a100-80", 78.8),
        ("A100 40GB", "a100-40", 39.4),
        ("a100-80gb", "a100-80", 78.8),
        ("H100 80GB", "h100", 79.18),
        ("h100 sxm", "h100", 79.18),
        ("RTX 4060 Ti 8GB", "rtx4060ti", 7.88),
        ("rtx 4060 ti 16 GB", "rtx4060ti", 15.76),
        ("v100 16GB", "v100", 15.76),
        ("3090 ti", "rtx3090ti", 23.64),
        ("4090 laptop", "rtx4090laptop", 15.76),
        ("RTX-4090", "rtx4090", 23.64),
        ("A6000", "a6000", 47.28),
    ],
)
def test_a_card_is_known_by_what_people_call_it(name: str, card: str, gib: float) -> None:
    found = gpu(name)
    assert found.name == card
    assert found.memory_bytes / GIB == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("12", "12GB"), ("11.5", "11.5GB"), ("0", "0GB"), (" 24 ", "24GB"), ("12000", "12000MB")],
)
def test_a_forgotten_unit_is_noticed(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"vram: {text.strip()} bytes; did you mean {meant}"):
        parse_bytes(text, name="vram")
