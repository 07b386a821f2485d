"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from lipcast.errors import UsageError

GIB = 2**30
_UNITS = "BKMGTP"
_LEAST_BARE = 10**6
"""A smaller number without a unit is taken for one whose unit was forgotten."""


def parse_bytes(text: str, *, name: str = "bytes") -> int:
    """Return the bytes of "12GB" (10^9), "12GiB" (2^30), "900MB", "1.5 TiB" or a plain number of bytes.

    Raises UsageError, which begins with `name`, also for a number so small that its unit must have been
    forgotten.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?))?B?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f'{name}: expected a size such as "12GB" or "11.5GiB", got "{text}"')
    power = _UNITS.index((match[2] or "B").upper())
    num_bytes = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if text.strip() == match[1] and num_bytes < _LEAST_BARE:
        raise UsageError(f"{name}: {match[1]} bytes; did you mean {match[1]}GB?")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Return a size in GiB, such as "9.67 GiB"; below one GiB in MiB."""
    if abs(num_bytes) >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB"
