"""Measure how long a loop waits for its items."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")


def report_waits(items: Iterable[_Item], on_wait: Callable[[float], None]) -> Iterator[_Item]:
    """Pass items on and call `on_wait` with the seconds spent waiting for each."""
    began_s = time.perf_counter()
    for item in items:
        on_wait(time.perf_counter() - began_s)
        yield item
        began_s = time.perf_counter()
