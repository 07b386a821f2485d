"""Fit the planner's table of kernel counts to fresh counts of the engine.

Output: `KernelCounts` by the names of `lipcast.planning.kernel_counts`. The engine is counted on fake CUDA
tensors at sizes that differ in one thing only: keys (window), the feed-forward's width, tokens, lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig
from lipcast.lab.gpu_work import StepCase, StepWork, count_step, default_spec
from lipcast.planning.kernel_counts import KernelCounts

_CONFIG = DiTConfig()
_CASES = {
    "HALF": StepCase("bf16", merges=False),
    "SINGLE": StepCase("fp32"),
    "BY_PARTS": StepCase("bf16"),
    "FP8_PRODUCTS": StepCase("fp8", merges=False),
    "FP4_PRODUCTS": StepCase("nvfp4", merges=False),
    'DEQUANTISED["fp8"]': StepCase("fp8", direct=False, merges=False),
    'DEQUANTISED["nvfp4"]': StepCase("nvfp4", direct=False, merges=False),
    'DEQUANTISED["int8"]': StepCase("int8", merges=False),
    'DEQUANTISED["int4"]': StepCase("int4", merges=False),
    'RINGS["fp8"]': StepCase("bf16", "fp8"),
    'RINGS["int4"]': StepCase("bf16", "int4"),
}


def fitted_counts(kernels: KernelName) -> Mapping[str, KernelCounts]:
    """Return every row of the table; all but the first two are what is added to "HALF"."""
    cases = {name: replace(case, kernels=kernels) for name, case in _CASES.items()}
    whole = {name: _fitted(case) for name, case in cases.items()}
    rows = {name: _less(counts, whole["HALF"]) for name, counts in whole.items()}
    lanes = _lanes(cases["HALF"])
    return {**rows, "HALF": whole["HALF"], "SINGLE": whole["SINGLE"], "SEVERAL_LANES": lanes}


def _fitted(case: StepCase) -> KernelCounts:
    """Return the counts of one lane."""
    work = count_step(_CONFIG, case)
    dim, hidden, (tokens, keys) = _CONFIG.dim, _CONFIG.ffn_dim, _tokens()
    weights = 6 * dim * dim + 2 * dim * hidden
    shorter = count_step(_CONFIG, case, infer_frames=24)
    per_key = (_bytes(work) - _bytes(shorter)) / (dim * (keys - _tokens(infer_frames=24)[1]))
    smaller, (few_tokens, few_keys) = count_step(_CONFIG, case, size="384*256"), _tokens("384*256")
    # What is left grows with the tokens, or does not: then it is of the weights.
    rest = _bytes(work) - per_key * keys * dim
    less = _bytes(smaller) - per_key * few_keys * dim
    per_token = (rest - less) / (tokens - few_tokens)
    per_weight = (rest - per_token * tokens) / weights
    narrow = count_step(replace(_CONFIG, ffn_dim=hidden // 2), case)
    saved = _bytes(work) - _bytes(narrow) - per_weight * dim * hidden
    per_hidden = saved / (tokens * hidden / 2)
    injected = work.per_injector.elementwise_bytes - per_weight * 2 * dim * dim
    return KernelCounts(
        bytes_per_value=(per_token - per_hidden * hidden) / dim,
        bytes_per_hidden=per_hidden,
        bytes_per_key=per_key,
        bytes_per_injected_value=injected / (tokens * dim),
        bytes_per_weight=per_weight,
        launches_per_layer=work.per_layer.launches - _lane_launches(case),
        launches_per_lane_layer=_lane_launches(case),
        launches_per_injector=work.per_injector.launches,
    )


def _lane_launches(case: StepCase) -> int:
    """Return the launches per layer that a third lane adds to two."""
    two, three = (count_step(_CONFIG, replace(case, num_lanes=lanes)) for lanes in (2, 3))
    return three.per_layer.launches - two.per_layer.launches


def _lanes(case: StepCase) -> KernelCounts:
    """Return the cost that several lanes add to each of them, and to the tick."""
    tokens, _ = _tokens()
    one, three = (count_step(_CONFIG, replace(case, num_lanes=lanes)) for lanes in (1, 3))
    launches = three.per_layer.launches - one.per_layer.launches - 2 * _lane_launches(case)
    return KernelCounts(
        bytes_per_value=(_bytes(three) / 3 - _bytes(one)) / (tokens * _CONFIG.dim),
        launches_per_layer=launches,
        launches_per_injector=three.per_injector.launches - one.per_injector.launches,
    )


def _bytes(work: StepWork) -> float:
    return work.per_layer.elementwise_bytes


def _less(counts: KernelCounts, base: KernelCounts) -> KernelCounts:
    names = [field.name for field in fields(counts)]
    return KernelCounts(*(getattr(counts, name) - getattr(base, name) for name in names))


def _tokens(size: str = "704*384", infer_frames: int = 48) -> tuple[int, int]:
    """Return the tokens of a lane, and keys that they see in ring and sink."""
    geometry = default_spec(_CONFIG, size=size, infer_frames=infer_frames).geometry
    keys = geometry.window * geometry.tokens_per_frame + geometry.sink_tokens
    return geometry.latents_per_block * geometry.tokens_per_frame, keys
