"""Where a text is cut for being spoken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcast.speech.sentences import MAX_CHARACTERS, SentenceSplitter, sentences

# Text that has what sentences end with, and what only looks like it.
WORDS = st.sampled_from(
    ["Dr.", "a", "Word", "e.g.", "3.5", "end.", "what?", "no!", "...", "。", "？", "中文", "\n", " ", "  ",
     '"', ")", "J.", "12.", "A" * 90, "\u2028", "😀", "U.S."]
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(WORDS, max_size=40).map(" ".join), st.lists(WORDS, max_size=40).map("".join), st.text()
)


@given(TEXTS)
def test_nothing_is_lost_and_the_order_is_kept(text: str) -> None:
    found = sentences(text)
    assert "".join(found) == text
    assert all(0 < len(sentence) <= MAX_CHARACTERS for sentence in found)


@given(TEXTS, st.data())
def test_pieces_of_any_size_give_the_same_sentences(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    splitter, found = SentenceSplitter(), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += splitter.push(text[begin:end])
    found.append(splitter.finish())
    assert [sentence for sentence in found if sentence] == sentences(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("Dr. Smith met Mr. J. R. Jones.", ["Dr. Smith met Mr. J. R. Jones."]),
        (
            "It costs 3.50 dollars, e.g. today. Yes.",
            ["It costs 3.50 dollars, e.g. today. ", "Yes."],
        ),
        ('He said "Go." Then he went.', ['He said "Go." ', "Then he went."]),
        ("Wait... what? Oh.", ["Wait... what? ", "Oh."]),
        ("1. First\n2. Second", ["1. First\n", "2. Second"]),
        ("In 1999. After that", ["In 1999. ", "After that"]),
        ("你好。今天好吗？好", ["你好。", "今天好吗？", "好"]),
        ("Version 2.0 is out.Now", ["Version 2.0 is out.Now"]),
    ],
)
def test_sentences_end_where_a_reader_would_pause(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_a_sentence_is_known_as_soon_as_the_next_one_begins() -> None:
    splitter = SentenceSplitter()
    assert list(splitter.push("Hello there.")) == []
    assert list(splitter.push(" ")) == []
    assert list(splitter.push("H")) == ["Hello there. "]
