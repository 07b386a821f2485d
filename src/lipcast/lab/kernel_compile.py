"""Compile the fused kernels for GPUs that are not here, and read what they take.

Input: Triton, which brings NVIDIA's assembler, and the published model's sizes. Output: registers,
spilled bytes, shared memory of every kernel by compute capability. Needs no GPU; `TRITON_INTERPRET` must
not be set.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from lipcast.config.models import DiTConfig
from lipcast.models.kernels import stored_linear
from lipcast.models.kernels.operators import attention_block, attention_kernel, row_block

CAPABILITIES = (80, 89, 90, 100, 120)
"""Ampere, Ada, Hopper, and both Blackwells."""
_FP8_INSTRUCTIONS = 89
_FIRST_WITH_OWN_FEATURES = 90
"""From here on PTX names instructions of this very architecture."""
_POINTERS = {
    "X": "fp32", "SUM": "fp32", "GATE": "fp32", "SCALES": "fp32", "COS": "fp32", "SIN": "fp32",
    "eps": "fp32", "to_log2": "fp32",
}  # fmt: skip
_DIVISIBLE = {"dim", "total", "outputs", "numbers_stride", "row_stride", "tokens_per_frame"}
"""Sizes that are multiples of 16."""
_READ_AS_FP8: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"attend_segments": ("K_NUMBERS", "V_NUMBERS"), "stored_linear": ("NUMBERS",)}
)
"""Pointers to 8-bit floats that are bytes only where a GPU has no instructions for them."""
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One kernel with the constants of one use."""

    label: str
    function: str
    constants: Mapping[str, Any]
    types: Mapping[str, str]
    options: Mapping[str, int]
    module: str = "triton_code"
    """Path of the function below `lipcast.models.kernels`."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """Registers and memory that a kernel takes on one architecture."""

    label: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_kernels(
    config: DiTConfig | None = None, capabilities: tuple[int, ...] = CAPABILITIES
) -> Iterator[CompiledKernel]:
    """Compile every kernel for every architecture. Raises whatever the compiler raises."""
    for case in _cases(config or DiTConfig()):
        for capability in capabilities:
            yield compiled(case, capability)


def _cases(config: DiTConfig) -> Iterator[KernelCase]:
    """Yield every kernel in the forms that the published model uses."""
    row, wide = row_block(config.dim), row_block(config.ffn_dim)
    norm = {"ADDS": True, "GATED": True, "NORMS": True, "MODULATES": True, "DTYPE": _bf16()}
    for fp8 in (False, True):
        types = {"WEIGHT": "*fp32", "BIAS": "*fp32", "NUMBERS": "*u8" if fp8 else "*bf16"}
        label = "residual, norm, modulation" + (", fp8" if fp8 else "")
        yield _case(label, "residual_norm", {**norm, "FP8": fp8}, types, row)
    rows = {"X": "*bf16", "NUMBERS": "*u8"}
    yield _case("GELU, fp8", "quantise_rows", {"GELU": True}, rows, wide)
    yield _case("fp8", "quantise_rows", {"GELU": False}, rows, row)
    fp4 = rows | {"TENSOR_SCALE": "*fp32", "SCALES": "*u8"}
    yield _case("NVFP4", "quantise_fp4", {}, fp4, row_block(1024))
    yield _case("RMS norm", "rms_norm", {}, {"X": "*bf16"}, row)
    head = config.head_dim
    merged = dict.fromkeys(("FIRST", "SECOND", "THIRD", "OUT"), "*bf16")
    merged |= {f"{name}_LSE": "*fp32" for name in ("FIRST", "SECOND", "THIRD")}
    yield _case("merge", "merge_parts", {"HEAD": head, "PARTS": 3}, merged, row)
    for name, planes, stored, scale in (
        ("bf16", 1, "*bf16", "*bf16"),
        ("fp8", 2, "*u8", "*fp32"),
        ("int4", 3, "*u8", "*bf16"),
    ):
        ring = {"HEAD": head, "GROUPS": 2 if planes == 3 else 1, "PLANES": planes}
        types = {f"{kv}_{part}": stored for kv in "KV" for part in ("NUMBERS",)}
        types |= {f"{kv}_{part}": scale for kv in "KV" for part in ("SCALES", "MINIMA")}
        yield _case(
            f"rotation and ring write, {name}",
            "rotate_and_write",
            {**ring, "NORMS": True},
            types,
            row,
        )
        yield _case(f"join of ring and sink, {name}", "join_keys_values", ring, types, row)
        block = attention_block(planes)
        sizes = {key: block[key] for key in ("BLOCK_Q", "BLOCK_K")}
        constants = {**ring, **sizes, "PRECISION": "tf32"}
        function = attention_kernel(head, ring["GROUPS"], planes)
        yield _case(f"attention, {name} ring", function, constants, types, block)
    yield from _product_cases()


def _product_cases() -> Iterator[KernelCase]:
    """Products with stored weights, of many tokens and of few."""
    for name, stored, scale, group in (
        ("int4", "*u8", "*bf16", 64), ("int8", "*i8", "*fp32", 0), ("fp8", "*u8", "*fp32", 0),
    ):  # fmt: skip
        types = {"X": "*bf16", "NUMBERS": stored, "SCALES": scale, "MINIMA": scale}
        constants = {
            "HAS_BIAS": True, "GROUP": group, "E4M3": name == "fp8", "DEPTH": 32 if group else 64,
            "PRECISION": "tf32",
        }  # fmt: skip
        blocks = {"": stored_linear.WIDE}
        if name == "int4":
            blocks[", few tokens"] = stored_linear.NARROW
        for which, block in blocks.items():
            sizes = {key: value for key, value in block.items() if key.startswith("BLOCK")}
            options = {key: block[key] for key in _OPTIONS if key in block}
            yield KernelCase(
                f"product, {name} weight{which}", "stored_linear", {**constants, **sizes}, types,
                options, "stored_linear_triton",
            )  # fmt: skip


def _case(
    label: str,
    function: str,
    constants: Mapping[str, Any],
    types: Mapping[str, str],
    block: Mapping[str, int],
) -> KernelCase:
    sizes = {name: block[name] for name in ("BLOCK",) if name in block}
    options = {"enable_fp_fusion": True} | {n: block[n] for n in _OPTIONS if n in block}
    module = "attention_triton" if function.startswith("attend") else "triton_code"
    return KernelCase(label, function, {**constants, **sizes}, types, options, module)


def compiled(case: KernelCase, capability: int) -> CompiledKernel:
    """Compile one kernel for one architecture. Raises whatever the compiler raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(f"lipcast.models.kernels.{case.module}"), case.function)
    types = dict(case.types)
    if capability >= _FP8_INSTRUCTIONS and "fp8" in case.label:
        types |= dict.fromkeys(_READ_AS_FP8.get(case.function, ()), "*fp8e4nv")
    signature = {name: _type(name, case, types) for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in case.constants.items()}
    kernel = triton.compile(
        ASTSource(
            fn=function, signature=signature, constexprs=places, attrs=_aligned(function, signature)
        ),
        target=GPUTarget("cuda", capability, 32),
        options=dict(case.options),
    )
    registers, spilled = _assembled(kernel.asm["ptx"], capability)
    return CompiledKernel(case.label, capability, registers, spilled, kernel.metadata.shared)


def _type(name: str, case: KernelCase, types: Mapping[str, str]) -> str:
    if name in case.constants:
        return "constexpr"
    if name in types:
        return types[name]
    scalar = _POINTERS.get(name)
    if name.isupper():
        return f"*{scalar or 'bf16'}"
    return scalar or "i32"


def _aligned(function: Any, signature: Mapping[str, str]) -> dict[tuple[int], list[list[object]]]:
    """Return the alignment of pointers and row lengths: multiples of 16, as in the model."""
    divisible = [["tt.divisibility", 16]]
    return {
        (index,): divisible
        for index, name in enumerate(function.arg_names)
        if signature[name].startswith("*") or name in _DIVISIBLE
    }


def _assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Return the registers per thread, and the bytes spilled to memory."""
    from triton.backends.nvidia.compiler import get_ptxas

    name = f"sm_{capability}{'a' if capability >= _FIRST_WITH_OWN_FEATURES else ''}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={name}", source.name]
        command += ["-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    spilled = [int(number) for number in re.findall(r"(\d+) bytes spill stores", said)]
    return max(registers), max(spilled)


def _bf16() -> Any:
    import triton.language as tl

    return tl.bfloat16
