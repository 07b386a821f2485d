"""Layouts of several GPUs: which there are, what each rank needs and does, and which is fastest.

Inputs: a PlanRequest (its GPU budget is one GPU's, its host budget the machine's) and a number of
GPUs. Outputs: `LayoutPlan`s with a plan per rank, the time between blocks, and a timeline.
A layout is a pipeline of stages, each owning consecutive denoising steps; a stage is one GPU or
several that split tokens and heads (Ulysses); weights are whole on every rank or sharded over all
of them; the decoder is on the last stage or on a rank of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lipcast.errors import MemoryBudgetError, UsageError
from lipcast.planning.plan import MemoryItem, Plan, PlanRequest, WorkShare, total
from lipcast.planning.planner import make_plan
from lipcast.planning.search import decode_block_seconds, least_vram
from lipcast.planning.workload import decoder_rank_parts


@dataclass(frozen=True, slots=True)
class Layout:
    """How the ranks share the work."""

    stages: int
    ulysses: int
    sharded: bool
    vae_rank: bool

    @property
    def num_gpus(self) -> int:
        return self.stages * self.ulysses + self.vae_rank

    def __str__(self) -> str:
        words = [f"{self.stages} stage{'s' * (self.stages > 1)}"]
        if self.ulysses > 1:
            words.append(f"Ulysses {self.ulysses}")
        if self.sharded:
            words.append("sharded weights")
        words.append("VAE rank" if self.vae_rank else "last stage decodes")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class LayoutConstraints:
    """Choices that are fixed; None leaves one open. `num_gpus_dit` counts all but a VAE rank."""

    num_gpus_dit: int | None = None
    ulysses_size: int | None = None
    vae_rank: bool | None = None
    sharded: bool | None = None
    uses_all: bool = False
    """Allow no layout that leaves a GPU idle."""


@dataclass(frozen=True, slots=True)
class RankPlan:
    """The ranks of one kind: of a pipeline stage, or the decoder."""

    role: str
    steps: tuple[int, ...]
    num_ranks: int
    parts: tuple[MemoryItem, ...]
    """GPU memory of each of them."""
    ram_bytes: int
    busy_s: float
    """Seconds per block."""
    plan: Plan | None

    @property
    def vram_bytes(self) -> int:
        return self.plan.vram_bytes if self.plan else total(self.parts)


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """A layout with everything predicted. Stages come first, the VAE rank last."""

    layout: Layout
    ranks: tuple[RankPlan, ...]
    video_frames_per_block: int

    @property
    def block_s(self) -> float:
        """Seconds from block to block: those of the busiest rank."""
        return max(rank.busy_s for rank in self.ranks)

    @property
    def frames_per_s(self) -> float:
        return self.video_frames_per_block / self.block_s

    @property
    def first_block_s(self) -> float:
        """Seconds to the first frames: the first block passes every rank in turn."""
        return sum(rank.busy_s for rank in self.ranks)

    @property
    def vram_bytes(self) -> int:
        """Memory of the fullest GPU."""
        return max(rank.vram_bytes for rank in self.ranks)

    @property
    def rank_key(self) -> tuple[float, bool, int, float]:
        """Sort key, less is better: time between blocks, then the plainer layout."""
        layout = self.layout
        return (self.block_s, layout.sharded, layout.num_gpus, self.first_block_s)


def stage_steps(num_steps: int, num_stages: int) -> tuple[tuple[int, ...], ...]:
    """Return the consecutive steps of each stage; the last stages, which may also decode, get the fewer."""
    share, more = divmod(num_steps, num_stages)
    counts = [share + (stage < more) for stage in range(num_stages)]
    starts = [sum(counts[:stage]) for stage in range(num_stages)]
    return tuple(tuple(range(s, s + n)) for s, n in zip(starts, counts, strict=True))


def layouts(
    request: PlanRequest, num_gpus: int, constraints: LayoutConstraints
) -> tuple[Layout, ...]:
    """Return the layouts that the constraints allow, on all the GPUs or with one idle.

    Layouts that share the heads unevenly are among them only where no other is allowed.
    """
    counts = (num_gpus, num_gpus - 1) if num_gpus > 2 and not constraints.uses_all else (num_gpus,)
    every = (layout for count in counts for layout in _all_layouts(request, count))
    allowed = tuple(layout for layout in every if _allows(constraints, layout))
    return tuple(layout for layout in allowed if _is_even(request, layout)) or allowed


def with_enough_steps(
    request: PlanRequest, num_gpus: int, constraints: LayoutConstraints
) -> PlanRequest:
    """Return the request, without folding the last step where the wanted layout needs it as a step."""

    def quality(request: PlanRequest) -> int:
        found = layouts(request, num_gpus, constraints)
        return 2 if any(_is_even(request, layout) for layout in found) else bool(found)

    unfolded = replace(request, fold_last_step=False)
    return unfolded if quality(unfolded) > quality(request) else request


def _is_even(request: PlanRequest, layout: Layout) -> bool:
    """Return whether every rank of a stage has as many heads."""
    return request.models.dit.num_heads % layout.ulysses == 0


def _all_layouts(request: PlanRequest, num_gpus: int) -> Iterator[Layout]:
    heads = request.models.dit.num_heads
    for vae_rank in (False, True):
        num_dit = num_gpus - vae_rank
        for stages in range(1, min(num_dit, request.num_evaluations) + 1):
            ulysses, rest = divmod(num_dit, stages)
            if rest or ulysses > heads:
                continue
            yield Layout(stages, ulysses, sharded=False, vae_rank=vae_rank)
            if num_dit > 1:
                yield Layout(stages, ulysses, sharded=True, vae_rank=vae_rank)


def _allows(constraints: LayoutConstraints, layout: Layout) -> bool:
    pairs = (
        (constraints.num_gpus_dit, layout.stages * layout.ulysses),
        (constraints.ulysses_size, layout.ulysses),
        (constraints.vae_rank, layout.vae_rank),
        (constraints.sharded, layout.sharded),
    )
    return all(wish is None or wish == given for wish, given in pairs)


def plan_layouts(
    request: PlanRequest, num_gpus: int, constraints: LayoutConstraints | None = None
) -> tuple[LayoutPlan, ...]:
    """Return every layout that fits, fastest first.

    Raises UsageError where no layout has this shape, MemoryBudgetError where none fits.
    """
    possible = layouts(request, num_gpus, constraints or LayoutConstraints())
    if not possible:
        raise UsageError(_impossible(request, num_gpus))
    each = replace(
        request, budget=replace(request.budget, ram_bytes=request.budget.ram_bytes // num_gpus)
    )
    plans: dict[WorkShare, Plan | None] = {}
    for share in {share for layout in possible for share in _shares(each, layout)}:
        plans[share] = _try(each, share)
    fitting = [_put_together(each, layout, plans) for layout in possible]
    found = [layout for layout in fitting if layout is not None]
    if not found:
        raise MemoryBudgetError(_too_big(each, possible))
    return tuple(sorted(found, key=lambda plan: plan.rank_key))


def _try(request: PlanRequest, share: WorkShare) -> Plan | None:
    if share.shards > 1:
        # FSDP gathers plain parameters only.
        wished = request.constraints.precision or "bf16"
        if wished not in {"fp32", "bf16"}:
            return None
        request = replace(request, constraints=replace(request.constraints, precision=wished))
    try:
        return make_plan(request, share)
    except MemoryBudgetError:
        return None


def _shares(request: PlanRequest, layout: Layout) -> tuple[WorkShare, ...]:
    """Return the work of one rank of each stage."""
    num_dit = layout.stages * layout.ulysses
    steps = stage_steps(request.num_evaluations, layout.stages)
    return tuple(
        WorkShare(
            num_steps=len(own),
            ulysses=layout.ulysses,
            shards=num_dit if layout.sharded else 1,
            decodes=not layout.vae_rank and stage == layout.stages - 1,
        )
        for stage, own in enumerate(steps)
    )


def _put_together(
    request: PlanRequest, layout: Layout, plans: dict[WorkShare, Plan | None]
) -> LayoutPlan | None:
    steps = stage_steps(request.num_evaluations, layout.stages)
    ranks: list[RankPlan] = []
    for stage, (share, own) in enumerate(zip(_shares(request, layout), steps, strict=True)):
        plan = plans[share]
        if plan is None:
            return None
        role = f"stage {stage}"
        busy_s = plan.time.block_s
        ranks.append(
            RankPlan(role, own, layout.ulysses, plan.generate_parts, plan.ram_bytes, busy_s, plan)
        )
    if layout.vae_rank:
        parts = decoder_rank_parts(request)
        if total(parts) > request.budget.vram_bytes:
            return None
        busy_s = decode_block_seconds(request)
        ranks.append(RankPlan("decoder", (), 1, parts, 0, busy_s, None))
    return LayoutPlan(layout, tuple(ranks), request.models.dit.video_frames_per_block)


def _impossible(request: PlanRequest, num_gpus: int) -> str:
    near = {
        f"{layout.num_gpus} GPUs as {layout}"
        for count in (num_gpus - 1, num_gpus, num_gpus + 1)
        for layout in _all_layouts(request, max(count, 1))
        if not layout.sharded
    }
    heads = request.models.dit.num_heads
    rule = (
        f"up to {request.num_evaluations} stages of 1 to {heads} GPUs each (the model has {heads} attention "
        "heads), with or without a GPU that only decodes; --num_gpus_dit is the number of stages times "
        "--ulysses_size"
    )
    return f"--gpus {num_gpus}: expected {rule}; possible near it: {'; '.join(sorted(near))}"


def _too_big(request: PlanRequest, possible: Sequence[Layout]) -> str:
    shares = {share for layout in possible for share in _shares(request, layout)}
    needs = [need for share in shares if (need := least_vram(request, share)) is not None]
    least = f"at least {min(needs)} bytes of memory per GPU" if needs else "more host memory"
    return f"expected {least}, got {request.budget.vram_bytes}; take a smaller size or infer_frames"


# The timeline


def timeline(plan: LayoutPlan, *, num_blocks: int = 4, width: int = 72) -> tuple[str, ...]:
    """Return a line per kind of rank: a letter per block where it computes, dots where it waits."""
    spans = _simulate(plan, num_blocks)
    end_s = max(end for row in spans for _, end in row)
    lines = []
    for rank, row in zip(plan.ranks, spans, strict=True):
        cells = ["."] * width
        for block, (start, end) in enumerate(row):
            first, last = int(start / end_s * width), max(int(end / end_s * width), 1)
            for cell in range(first, min(max(last, first + 1), width)):
                cells[cell] = chr(ord("A") + block % 26)
        lines.append(f"{rank.role:<9}|{''.join(cells)}|")
    ruler = f"{'':<9}0{end_s:>{width}.2f} s"
    return (*lines, ruler)


def _simulate(plan: LayoutPlan, num_blocks: int) -> list[list[tuple[float, float]]]:
    """Return (start, end) of every block on every rank: a rank takes a block when both are free."""
    spans: list[list[tuple[float, float]]] = [[] for _ in plan.ranks]
    for _ in range(num_blocks):
        ready_s = 0.0
        for rank, row in zip(plan.ranks, spans, strict=True):
            start = max(ready_s, row[-1][1] if row else 0.0)
            ready_s = start + rank.busy_s
            row.append((start, ready_s))
    return spans
