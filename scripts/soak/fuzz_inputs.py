"""Inputs for the fuzzers of parsers: broken copies of a good file, and a place for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**53, 2**63 - 1)


@st.composite
def broken_copies(draw: st.DrawFn, good: bytes) -> bytes:
    """Draw the bytes of a good file after one to six edits: set, insert, remove, repeat, cut."""
    data = bytearray(good)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3, 6)))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        edit = draw(st.sampled_from(("set", "number", "insert", "remove", "repeat", "cut")))
        if edit == "set":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif edit == "number":
            width = draw(st.sampled_from((2, 4, 8)))
            order = draw(st.sampled_from(("little", "big")))
            number = draw(st.sampled_from(_NUMBERS)) % 256**width
            data[at : at + width] = number.to_bytes(width, order)
        elif edit == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif edit == "cut":
            del data[at:]
        else:
            length = draw(st.integers(0, 64))
            data[at : at + length] = data[at : at + length] * (2 if edit == "repeat" else 0)
    return bytes(data)


@contextmanager
def file_of(data: bytes, name: str) -> Iterator[Path]:
    """Yield the path of a file called `name` with these bytes, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="lipcast-fuzz-") as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path
