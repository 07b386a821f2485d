"""How a video is directed while it goes on: prompts over time.

Input: a file or pairs of (second, prompt). Output: a frozen `Direction`, checked. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from lipcast.config.models import VIDEO_FPS
from lipcast.config.tables import Row, read_table, spelled
from lipcast.errors import InputError, UsageError

PoseEnd = Literal["hold", "loop", "black"]
POSE_ENDS: tuple[PoseEnd, ...] = ("hold", "loop", "black")
Prompts = tuple[tuple[float, str], ...]
"""(second, prompt), in order: each holds until the next begins."""
_COLUMNS = ("second", "prompt")
_NAMES = {
    **dict.fromkeys(("second", "seconds", "time", "start", "at", "s"), "second"),
    **dict.fromkeys(("prompt", "text"), "prompt"),
}
"""Column names by which a table may call the two."""
_CLOCK = re.compile(r"(?:(?:(\d{1,3}):)?(\d{1,4}):)?(\d{1,6}(?:[.,]\d{1,9})?)\s*s?")


@dataclass(frozen=True, slots=True)
class Direction:
    """What directs a video beside portrait, voice and prompt. Everything is optional.

    `prompts`: prompts over time, as (second, prompt) pairs or the path of a table of them. A prompt begins
    at the block border nearest to its second, and holds until the next; before the first, the prompt of the
    video holds.
    `pose_video`: a video, or a folder of pictures at 25 a second, whose pose is followed from the beginning.
    `pose_end`: after its end hold its last picture, loop it, or go on without a pose ("black").
    `continue_from`: a video from whose last frames this one goes on, of the same aspect.
    """

    prompts: Prompts | Sequence[tuple[float, str]] | str | Path = ()
    pose_video: str | Path | None = None
    pose_end: PoseEnd = "hold"
    continue_from: str | Path | None = None

    def __post_init__(self) -> None:
        if self.pose_end not in POSE_ENDS:
            expected = ", ".join(POSE_ENDS)
            raise UsageError(f"pose_end: expected one of {expected}, got {self.pose_end!r}")
        given = self.prompts
        found = read_prompts(Path(given)) if isinstance(given, str | Path) else _pairs(given)
        object.__setattr__(self, "prompts", found)

    def prompts_by_block(self, prompt: str | Path, block_frames: int) -> dict[int, str | Path]:
        """Return the prompts of a video by the block that each begins with; `prompt` is the first, if any.

        Raises UsageError where two begin with one block, or two are given for the beginning.
        """
        by_block: dict[int, str | Path] = {}
        begun: dict[int, float] = {}
        for second, text in cast(Prompts, self.prompts):
            block = int(second * VIDEO_FPS / block_frames + 0.5)
            if block in begun:
                raise UsageError(
                    f"prompts: those of {begun[block]:g} s and {second:g} s begin with the same block; a "
                    f"block lasts {block_frames / VIDEO_FPS:g} s, so put them further apart"
                )
            by_block[block], begun[block] = text, second
        if 0 in by_block and prompt:
            raise UsageError(
                "prompts: the first begins with the video, and another prompt was given for its beginning; "
                "leave one of them out"
            )
        return {0: prompt, **by_block}


def read_prompts(path: Path) -> Prompts:
    """Return the prompts of a table with the columns second and prompt. Raises InputError.

    A line of column names is optional; seconds are written as 12.5, 1:05 or 1:02:03.
    """
    rows = read_table(path, columns=_COLUMNS)
    found = tuple((_second(row), _prompt(row)) for row in map(_renamed, rows))
    _check_order(found, [row.place for row in rows])
    return found


def _renamed(row: Row) -> Row:
    values: dict[str, Any] = {}
    for column, value in row.values.items():
        name = _NAMES.get(spelled(column))
        if name is None or name in values:
            raise InputError(
                f"{row.place}: expected the columns second and prompt, got {column!r}; rename or remove it"
            )
        values[name] = value
    return Row(row.place, values)


def _second(row: Row) -> float:
    text = str(row.values.get("second", ""))
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"{row.place}: expected a time in seconds such as 12.5 or 1:05, got {text[:40]!r}"
        )
    hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _prompt(row: Row) -> str:
    text = row.values.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{row.place}: has no prompt; write one beside its second")
    return text


def _pairs(given: Any) -> Prompts:
    """Return (second, prompt) pairs, checked. Raises UsageError, InputError."""
    found = []
    for number, pair in enumerate(given, 1):
        match pair:
            case [int() | float() as second, str() as text] if 0 <= second < float("inf"):
                found.append((float(second), text))
            case _:
                raise UsageError(
                    f"prompts, item {number}: expected a pair (second, prompt), got {pair!r:.60}"
                )
    _check_order(tuple(found), [f"prompts, item {n + 1}" for n in range(len(found))])
    return tuple(found)


def _check_order(prompts: Prompts, places: Sequence[str]) -> None:
    for place, ((before, _), (second, _)) in zip(places[1:], pairwise(prompts), strict=True):
        if second <= before:
            raise InputError(
                f"{place}: {second:g} s is not later than the {before:g} s before it; sort the prompts by "
                "time"
            )


UNDIRECTED = Direction()
