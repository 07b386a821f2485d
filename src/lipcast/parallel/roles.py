"""The work of every rank of a layout, as data.

Input: a `Layout`. Output: one `Role` per rank. The ranks of a stage have consecutive numbers, stages are in
the order of their steps, and a rank that only decodes comes last.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipcast.planning.layouts import Layout, stage_steps
from lipcast.planning.plan import WorkShare


@dataclass(frozen=True, slots=True)
class Role:
    """The work of one rank."""

    rank: int
    layout: Layout
    stage: int | None
    """Number of its stage; None where it only decodes."""
    ulysses_rank: int = 0
    """Number among the ranks of its stage."""

    @property
    def decodes(self) -> bool:
        """Whether this rank decodes frames."""
        return self.rank == decoder_rank(self.layout)

    @property
    def is_last_stage(self) -> bool:
        """Whether blocks become clean on this rank."""
        return self.stage == self.layout.stages - 1

    @property
    def stage_ranks(self) -> tuple[int, ...]:
        """Ranks that share the steps of this one, itself included."""
        assert self.stage is not None
        first = self.stage * self.layout.ulysses
        return tuple(range(first, first + self.layout.ulysses))

    @property
    def prev_rank(self) -> int | None:
        """Rank that blocks come from; None for the first stage."""
        if self.stage is None:
            return (self.layout.stages - 1) * self.layout.ulysses
        return self.rank - self.layout.ulysses if self.stage else None

    @property
    def next_rank(self) -> int | None:
        """Rank that blocks go to; None where they are clean and decoded on this rank or by its stage."""
        if not self.is_last_stage:
            return None if self.stage is None else self.rank + self.layout.ulysses
        return (
            decoder_rank(self.layout) if self.layout.vae_rank and self.ulysses_rank == 0 else None
        )

    def steps(self, num_steps: int) -> range:
        """Return the denoising steps of this rank, of `num_steps` in all."""
        if self.stage is None:
            return range(0)
        own = stage_steps(num_steps, self.layout.stages)[self.stage]
        return range(own[0], own[-1] + 1)

    def share(self, num_steps: int) -> WorkShare:
        """Return the share of the work that the planner plans this rank for."""
        return WorkShare(
            num_steps=len(self.steps(num_steps)),
            ulysses=self.layout.ulysses,
            shards=num_dit_ranks(self.layout) if self.layout.sharded else 1,
            decodes=self.decodes,
        )

    def __str__(self) -> str:
        """Return its name in messages: "stage 1", "stage 1, part 2 of 2", "decoder"."""
        if self.stage is None:
            return "decoder"
        split = self.layout.ulysses
        part = f", part {self.ulysses_rank + 1} of {split}" if split > 1 else ""
        return f"stage {self.stage}{part}"


def roles_of(layout: Layout) -> tuple[Role, ...]:
    """Return the roles of a layout's ranks, in order."""
    found = [
        Role(stage * layout.ulysses + ulysses_rank, layout, stage, ulysses_rank)
        for stage in range(layout.stages)
        for ulysses_rank in range(layout.ulysses)
    ]
    if layout.vae_rank:
        found.append(Role(len(found), layout, None))
    return tuple(found)


def num_dit_ranks(layout: Layout) -> int:
    """Return the number of ranks that run the transformer."""
    return layout.stages * layout.ulysses


def decoder_rank(layout: Layout) -> int:
    """Return the rank that decodes: one that does nothing else, or the first of the last stage."""
    last = num_dit_ranks(layout)
    return last if layout.vae_rank else last - layout.ulysses
