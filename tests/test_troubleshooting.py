"""Every sentence that the source may tell a user has a row in docs/troubleshooting.md; no row is stale."""

from __future__ import annotations

import re
from pathlib import Path

from messages import all_messages

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
MESSAGES = all_messages()


def phrases() -> list[str]:
    """The phrases in the first column of the tables below "Messages"."""
    _, _, tables = PAGE.read_text("utf-8").partition("\n## Messages\n")
    tables, _, _ = tables.partition("\n## ")
    rows = re.findall(r"^\| (`.*?`) \|", tables, re.M)
    return [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]


def test_the_source_was_read() -> None:
    assert len(MESSAGES) > 200
    assert len(phrases()) > 100


def test_every_message_is_explained() -> None:
    known = phrases()
    missing = [
        message
        for message in MESSAGES
        if message.is_sentence and not any(phrase in message.text for phrase in known)
    ]
    listed = "\n".join(f"  {m.place}: {m.kind}: {m.text[:150]}" for m in missing)
    assert not missing, (
        f"docs/troubleshooting.md: add a row with words of the message, or the words to a row:\n{listed}"
    )


def test_every_row_is_of_a_message() -> None:
    texts = "\n".join(message.text for message in MESSAGES)
    stale = [phrase for phrase in phrases() if phrase not in texts]
    assert not stale, f"docs/troubleshooting.md: no message has these words: {stale}"


def test_no_row_is_of_every_message() -> None:
    loose = [
        phrase
        for phrase in phrases()
        if sum(phrase in message.text for message in MESSAGES) > len(MESSAGES) // 5
    ]
    assert not loose, f"docs/troubleshooting.md: too many messages have these words: {loose}"
