"""Leaves out what a reasoning model thinks between <think> and </think>: it is not for the listener.

Input: a text in pieces of any size. Output: the rest of it. Invariant: the result does not depend on how the
text was cut into pieces.
"""

from __future__ import annotations

_OPENS, _CLOSES = "<think>", "</think>"


class Thoughts:
    """Holds what may be the beginning of a tag."""

    def __init__(self) -> None:
        self._waiting, self._is_thinking = "", False

    def push(self, text: str) -> str:
        """Append text; returns what is to be said."""
        self._waiting += text
        said = ""
        while True:
            before, tag, rest = self._waiting.partition(self._tag)
            if not tag:
                break
            said += "" if self._is_thinking else before
            self._waiting, self._is_thinking = rest, not self._is_thinking
        cut = len(self._waiting) - self._num_held()
        said += "" if self._is_thinking else self._waiting[:cut]
        self._waiting = self._waiting[cut:]
        return said

    def finish(self) -> str:
        """Return the rest."""
        return "" if self._is_thinking else self._waiting

    @property
    def _tag(self) -> str:
        return _CLOSES if self._is_thinking else _OPENS

    def _num_held(self) -> int:
        """Return how many characters at the end may begin a tag."""
        lengths = range(min(len(self._tag) - 1, len(self._waiting)), 0, -1)
        return next((n for n in lengths if self._tag.startswith(self._waiting[-n:])), 0)
