"""Cuts a text that is still being written at the ends of its sentences.

Input: text in pieces of any size. Output: sentences with the white space behind them; joined, they are the
text. Invariant: the sentences do not depend on how the text was cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

MAX_CHARACTERS = 400
"""A longer sentence is cut at a space, so that its speech can begin."""
_CLOSING = "\"'”’»)\\]"
_WIDE_CLOSING = "」』”’）"
_ENDS = re.compile(
    rf"[.!?…]+[{_CLOSING}]*\s+(?=\S)"
    rf"|[。！？]+[{_WIDE_CLOSING}]*\s*(?=[^\s。！？{_WIDE_CLOSING}])"
    r"|\s*\n\s*(?=\S)"
)
_ABBREVIATION = re.compile(
    r"(mrs?|ms|dr|prof|st|sr|jr|no|vs|fig|approx|dept|est|inc|ltd|co|mt|gen|col|capt|lt|sgt|rev|hon"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|bzw|ca|evtl|usw|nr|hr|fr|[^\W\d_](\.[^\W\d_])*)",
    re.I,
)
"""What a full stop does not end a sentence after: single letters, too, as in "e.g." and "J. Smith"."""
_OPENING = "([\"'“‘«"


class SentenceSplitter:
    """Holds the text that belongs to no finished sentence yet."""

    def __init__(self) -> None:
        self._waiting = ""

    def push(self, text: str) -> Iterator[str]:
        """Append text, and yield the sentences that are complete."""
        self._waiting += text
        while (end := self._end()) is not None:
            sentence, self._waiting = self._waiting[:end], self._waiting[end:]
            yield sentence

    def finish(self) -> str:
        """Return the rest, which may be empty."""
        rest, self._waiting = self._waiting, ""
        return rest

    def _end(self) -> int | None:
        """Return where the first sentence ends; None where that cannot be known yet."""
        for found in _ENDS.finditer(self._waiting[: MAX_CHARACTERS + 1]):
            if found.start() and self._is_end(found):
                return found.end()
        if len(self._waiting) <= MAX_CHARACTERS:
            return None
        space = self._waiting.rfind(" ", 0, MAX_CHARACTERS)
        return space + 1 if space > 0 else MAX_CHARACTERS

    def _is_end(self, found: re.Match[str]) -> bool:
        text, mark = self._waiting, found[0].rstrip()
        if "\n" in found[0]:
            return True
        if text[found.end()].islower():
            return False
        if mark != ".":
            return True
        words = text[: found.start()].rsplit(None, 1)
        word = words[-1].lstrip(_OPENING) if words else ""
        if word.isdecimal():  # "1. First": a number of a list stays with its text
            return bool(text[: found.start() - len(word)].strip())
        return not _ABBREVIATION.fullmatch(word)


def sentences(text: str) -> list[str]:
    """Return the sentences of a complete text; joined, they are the text."""
    splitter = SentenceSplitter()
    found = [*splitter.push(text), splitter.finish()]
    return [sentence for sentence in found if sentence]


async def sentences_of(pieces: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield the sentences of a text that comes in pieces, each as soon as it is complete."""
    splitter = SentenceSplitter()
    async with aclosing(pieces):
        async for piece in pieces:
            for sentence in splitter.push(piece):
                yield sentence
    if rest := splitter.finish():
        yield rest
