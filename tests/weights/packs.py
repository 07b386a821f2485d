"""Weight files as other programs repack them, and the tensors that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
VAE, TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
Tensors = dict[str, Tensor]


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def is_matrix(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.dim() == 2


def note(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def scaled(
    weight: Tensor, dtype: torch.dtype, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an 8-bit weight, its scales on a grid, and the exact product as bf16."""
    rows, columns = (size // cells for size, cells in zip(weight.shape, grid, strict=True))
    cells = weight.float().view(grid[0], rows, grid[1], columns)
    largest = 127.0 if dtype is torch.int8 else torch.finfo(dtype).max
    scale = cells.abs().amax((1, 3), keepdim=True) / largest
    whole = (cells / scale).round() if dtype is torch.int8 else cells / scale
    stored = whole.to(dtype)
    exact = (stored.float() * scale).view_as(weight).bfloat16()
    return stored.view(weight.shape), scale.view(grid), exact


def comfy_old(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, FP8, (1, 1))
    return {
        f"{layer}.weight": stored,
        f"{layer}.scale_weight": scale.view(1),
        f"{layer}.scale_input": torch.ones(1),
    }, exact


def comfy_new(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, FP8, (1, 1))
    return {
        f"{layer}.weight": stored,
        f"{layer}.weight_scale": scale.view(()),
        f"{layer}.input_scale": torch.ones(()),
        f"{layer}.comfy_quant": note('{"format": "float8_e4m3fn"}'),
    }, exact


def scaled_rows(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, torch.int8, (len(weight), 1))
    return {f"{layer}.weight": stored, f"{layer}.weight_scale": scale}, exact


def scaled_blocks(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, torch.float8_e5m2, (len(weight), 2))
    return {f"{layer}.weight": stored, f"{layer}.scale_weight": scale[..., None]}, exact


def scaled_tiles(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored, scale, exact = scaled(weight, FP8, (2, 2))
    return {f"{layer}.weight": stored, f"{layer}.weight_scale_inv": scale}, exact


def plain_cast(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    return {f"{layer}.weight": weight.to(FP8)}, weight.to(FP8).bfloat16()


def plain_cast_e5m2(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stored = weight.to(torch.float8_e5m2)
    return {f"{layer}.weight": stored}, stored.bfloat16()


PACKS: dict[str, Callable[[str, Tensor], tuple[Tensors, Tensor]]] = {
    "fp8_scaled, scale_weight": comfy_old,
    "fp8_scaled, weight_scale and comfy_quant": comfy_new,
    "int8 by row": scaled_rows,
    "fp8_e5m2 by blocks of a row": scaled_blocks,
    "fp8 by tiles": scaled_tiles,
    "fp8_e4m3fn": plain_cast,
    "fp8_e5m2": plain_cast_e5m2,
}
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")


def packed(tensors: Tensors, kind: str, prefix: str = "") -> tuple[Tensors, Tensors]:
    """Return a repacked file and the tensors that it stands for."""
    file: Tensors = {"scaled_fp8": torch.zeros(2).to(FP8)} if "scaled" in kind else {}
    exact: Tensors = {}
    for name, tensor in tensors.items():
        parts = {name: tensor}
        exact[name] = tensor
        if is_matrix(name, tensor) and tensor.shape[0] % 2 == 0:
            parts, exact[name] = PACKS[kind](name.removesuffix(".weight"), tensor)
        file |= {prefix + key: value for key, value in parts.items()}
    return file, exact


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def without(source: Path, *patterns: str) -> Path:
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        path.unlink()
    return source
