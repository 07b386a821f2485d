"""What a conversation remembers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcast.speech.chat import Answer, Conversation


def answered(*sentences: tuple[str, float]) -> Answer:
    answer = Answer()
    for text, seconds in sentences:
        answer.begin(text)
        answer.extend(seconds)
    return answer


@pytest.mark.parametrize(
    ("unspoken_s", "left"),
    [
        (0.0, "One. Two words more."),
        (0.8, "One. Two …"),
        (1.9, "One."),
        (2.0, "One."),
        (2.5, ""),
        (99.0, ""),
    ],
)
def test_an_interrupted_answer_ends_with_its_last_spoken_word(unspoken_s: float, left: str) -> None:
    answer = answered(("One. ", 1.0), ("Two words more.", 2.0))
    answer.cut(unspoken_s)
    assert answer.text == left


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=9), st.floats(0, 9)), max_size=6),
    st.floats(0, 60),
)
def test_what_is_kept_is_a_beginning(sentences: list[tuple[str, float]], unspoken_s: float) -> None:
    answer = answered(*sentences)
    whole = answer.text
    answer.cut(unspoken_s)
    assert whole.startswith(answer.text.removesuffix(" …").strip())


def test_a_sentence_without_sound_was_not_heard() -> None:
    answer = answered(("One. ", 1.0), ("Two.", 0.0))
    answer.cut(0.0)
    assert answer.text == "One."


def test_the_history_is_bounded_and_begins_with_the_system_prompt() -> None:
    conversation = Conversation("Be brief.")
    for number in range(50):
        answer = conversation.ask(f"question {number}")
        answer.begin(f"answer {number}")
    messages = conversation.messages()
    assert messages[0] == {"role": "system", "content": "Be brief."} and len(messages) == 41
    assert messages[-2:] == [
        {"role": "user", "content": "question 49"}, {"role": "assistant", "content": "answer 49"},
    ]  # fmt: skip
    conversation.ask("And?")
    assert conversation.messages()[-1] == {"role": "user", "content": "And?"}
    assert Conversation("").messages() == []
