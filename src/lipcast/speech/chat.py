"""Answers of a language model behind OpenAI's /v1/chat/completions, and what was said so far.

Invariant: the history holds only what was heard; an interrupted answer ends with its last spoken word.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from lipcast.speech.service import EventSource, Service, is_json, reason_of
from lipcast.speech.thoughts import Thoughts

LLM_KEY = "LIPCAST_LLM_KEY"
SYSTEM_PROMPT = (
    "You are a person in a spoken conversation. Answer in one to three short, plain sentences, without "
    "lists, markup or emoji: your words are read out."
)
MAX_ANSWER = 8000
"""Characters of an answer; what comes after them is not read."""
_MAX_TURNS = 20
_DONE = "[DONE]"


class ChatModel:
    """Asks a server for answers."""

    def __init__(self, url: str, *, model: str) -> None:
        """Raises UsageError for a URL that is none."""
        self._service, self._model = Service("--llm_url", url, key=LLM_KEY), model

    async def answer(self, messages: Sequence[dict[str, str]]) -> AsyncGenerator[str, None]:
        """Yield an answer while it is written. Raises SpeechError."""
        document = {"model": self._model, "messages": list(messages), "stream": True}
        thoughts, num_left = Thoughts(), MAX_ANSWER
        async with self._pieces(document) as pieces:
            async for piece in pieces:
                text = thoughts.push(piece)[:num_left]
                num_left -= len(text)
                if text:
                    yield text
                if num_left <= 0:
                    return
        if rest := thoughts.finish()[:num_left]:
            yield rest
        elif num_left == MAX_ANSWER:
            raise self._service.unusable(
                "no words; a model that reasons may have written nothing else"
            )

    @asynccontextmanager
    async def _pieces(self, document: Any) -> AsyncIterator[AsyncGenerator[str, None]]:
        """Ask, and give out the text of the answer in the pieces that come."""
        async with (
            self._service.events("chat/completions", document) as source,
            aclosing(self._read(source)) as pieces,
        ):
            yield pieces

    async def _read(self, source: EventSource) -> AsyncGenerator[str, None]:
        """Yield the text of an answer in the pieces that come."""
        if is_json(source.response):
            yield self._text(await self._service.document(source.response), "message")
            return
        is_complete = False
        async for event in source:
            data = event.data.strip()
            if data == _DONE:
                return
            if data:  # else a sign of life
                piece = self._parsed(data)
                is_complete = is_complete or bool(_choice(piece).get("finish_reason"))
                yield self._text(piece, "delta")
        if not is_complete:
            raise self._service.unusable("it broke off before its end")

    async def close(self) -> None:
        """End the connections."""
        await self._service.close()

    def _parsed(self, data: str) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._service.unusable("no JSON") from error

    def _text(self, document: Any, part: str) -> str:
        """Return the text of a completion, or of a piece of one; an empty text where it has none."""
        found = document if isinstance(document, dict) else {}
        if found.get("error") or found.get("object") == "error":
            raise self._service.unusable(reason_of(json.dumps(found)))
        message = _choice(document).get(part)
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):  # of parts, of which some are thoughts
            content = "".join(each["text"] for each in content if _is_text(each))
        return content[:MAX_ANSWER] if isinstance(content, str) else ""


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _choice(document: Any) -> dict[str, Any]:
    """Return the first choice of a completion; an empty one where it has none."""
    choices = document.get("choices") if isinstance(document, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


@dataclass(slots=True)
class Answer:
    """Sentences of an answer, with the seconds that their speech lasts."""

    sentences: list[list[Any]] = field(default_factory=list)
    """[text, seconds]."""

    def begin(self, sentence: str) -> None:
        """Begin the next sentence, which is going to be spoken."""
        self.sentences.append([sentence, 0.0])

    def extend(self, seconds: float) -> None:
        """Add seconds to the speech of the last sentence."""
        self.sentences[-1][1] += seconds

    def cut(self, unspoken_s: float) -> None:
        """Forget what lies in the last `unspoken_s` seconds."""
        spoken_s = sum(seconds for _, seconds in self.sentences) - unspoken_s
        kept: list[list[Any]] = []
        for text, seconds in self.sentences:
            if seconds and spoken_s >= seconds - 1e-6:
                kept.append([text, seconds])
                spoken_s -= seconds
                continue
            share = max(0.0, spoken_s) / seconds if seconds else 0.0
            words = text[: int(share * len(text))].rpartition(" ")[0]
            if words:
                kept.append([f"{words} …", 0.0])
            break
        self.sentences = kept

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(text for text, _ in self.sentences).strip()


class Conversation:
    """What was asked and answered, bounded to the last turns."""

    def __init__(self, system_prompt: str) -> None:
        self._system = system_prompt
        self._turns: deque[tuple[str, Answer]] = deque(maxlen=_MAX_TURNS)

    def ask(self, question: str) -> Answer:
        """Append a question; returns its answer, to be filled."""
        answer = Answer()
        self._turns.append((question, answer))
        return answer

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation as a language model reads it."""
        found = [{"role": "system", "content": self._system}] if self._system else []
        for question, answer in self._turns:
            found.append({"role": "user", "content": question})
            if answer.text:
                found.append({"role": "assistant", "content": answer.text})
        return found
