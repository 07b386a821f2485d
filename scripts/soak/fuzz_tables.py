"""Fuzzers of the parsers of text that a user writes: options, sizes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lipcast.planning.hardware import parse_bytes


@given(st.text(max_size=12) | st.from_regex(r"[0-9.,]{1,6} ?[kKmMgGtT]?i?[bB]?", fullmatch=True))
def _memory_sizes(text: str) -> None:
    parse_bytes(text)


def targets() -> dict[str, Callable[[], None]]:
    return {"memory sizes": _memory_sizes}
