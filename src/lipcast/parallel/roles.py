"""Who does what in a layout, as data.

Input: a `Layout`. Output: one `Role` per rank. Ranks of a stage follow each other, stages follow each other,
a decoder of its own comes last.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipcast.planning.layouts import Layout, stage_steps
from lipcast.planning.plan import Share


@dataclass(frozen=True, slots=True)
class Role:
    """The work of one rank."""

    rank: int
    layout: Layout
    stage: int | None
    """None: it only decodes."""
    place: int = 0
    """Among the ranks of its stage."""

    @property
    def decodes(self) -> bool:
        return self.rank == decoder_rank(self.layout)

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.layout.stages - 1

    @property
    def stage_ranks(self) -> tuple[int, ...]:
        """The ranks that share a step with this one, itself included."""
        assert self.stage is not None
        first = self.stage * self.layout.ulysses
        return tuple(range(first, first + self.layout.ulysses))

    @property
    def before(self) -> int | None:
        """The rank that blocks come from; None for the first stage."""
        if self.stage is None:
            return (self.layout.stages - 1) * self.layout.ulysses
        return self.rank - self.layout.ulysses if self.stage else None

    @property
    def after(self) -> int | None:
        """The rank that blocks go to; None where they are clean and nobody else decodes them."""
        if not self.is_last_stage:
            return None if self.stage is None else self.rank + self.layout.ulysses
        return decoder_rank(self.layout) if self.layout.vae_rank and self.place == 0 else None

    def steps(self, num_steps: int) -> range:
        """The denoising steps of this rank in a video of so many."""
        if self.stage is None:
            return range(0)
        own = stage_steps(num_steps, self.layout.stages)[self.stage]
        return range(own[0], own[-1] + 1)

    def share(self, num_steps: int) -> Share:
        """What the planner has to know of it."""
        return Share(
            num_steps=len(self.steps(num_steps)),
            ulysses=self.layout.ulysses,
            shards=num_dit_ranks(self.layout) if self.layout.sharded else 1,
            decodes=self.decodes,
        )

    def __str__(self) -> str:
        """As it is called in messages: "stage 1", "stage 1, part 2 of 2", "decoder"."""
        if self.stage is None:
            return "decoder"
        split = self.layout.ulysses
        part = f", part {self.place + 1} of {split}" if split > 1 else ""
        return f"stage {self.stage}{part}"


def roles_of(layout: Layout) -> tuple[Role, ...]:
    """All ranks of a layout, in order."""
    found = [
        Role(stage * layout.ulysses + place, layout, stage, place)
        for stage in range(layout.stages)
        for place in range(layout.ulysses)
    ]
    if layout.vae_rank:
        found.append(Role(len(found), layout, None))
    return tuple(found)


def num_dit_ranks(layout: Layout) -> int:
    """Ranks that run the transformer."""
    return layout.stages * layout.ulysses


def decoder_rank(layout: Layout) -> int:
    """The rank that makes frames of latents: one of its own, or the first of the last stage."""
    last = num_dit_ranks(layout)
    return last if layout.vae_rank else last - layout.ulysses
