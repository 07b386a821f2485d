"""The speech loop of one session: texts are spoken, questions answered, voices heard.

    microphone -> turn -> transcript -> answer, sentence by sentence -> speech -> live session

Input: texts, questions, sound of a microphone, interruptions, in one event loop. Output: sound pushed to the
live session; events for whoever shows them. One thing is done at a time. An interruption ends requests and
speech, and the history keeps what was heard. What fails is an event and a record of the log, and the session
goes on. Back-pressure: sound is made as it is spoken, a few seconds ahead at most.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS
from lipcast.engine.live import LiveSession
from lipcast.engine.live_types import LiveState
from lipcast.env import logger
from lipcast.errors import CancelledError, LipcastError, UsageError
from lipcast.serve.logs import log_event
from lipcast.serve.metrics import Metrics
from lipcast.speech.chat import Answer, Conversation
from lipcast.speech.sentences import sentences_of
from lipcast.speech.services import SpeechServices
from lipcast.speech.sound import Sound
from lipcast.speech.voice_activity import MAX_TURN_S, TurnEnded, TurnListener, VoiceBegan

MAX_TEXT = 4000
"""Characters of one message."""
_MAX_WAITING = 20
_AHEAD_S, _PIECE_S = 4.0, 0.5
"""Sound that may wait to be spoken before more is made, and how much is pushed at a time."""

_log = logger("serve")

_MARKUP = re.compile(r"[*`#~|]+|^\s*[-•]\s+", re.MULTILINE)
"""What models write for the eye, and no voice should read."""

Job = Callable[[], Awaitable[None]]


class Talk:
    """Speaks for one live session."""

    def __init__(
        self, live: LiveSession, services: SpeechServices, *, metrics: Metrics, label: str
    ) -> None:
        self._live, self._services, self._metrics, self._label = live, services, metrics, label
        self.emit: Callable[[dict[str, Any]], None] = lambda _: None
        """Takes the events; set by the connection."""
        self.ahead_s: Callable[[], float] = lambda: 0.0
        """How much was sent that the client has not played; set by the connection."""
        self._conversation = Conversation(services.system_prompt)
        self._answer: Answer | None = None
        """The last answer, until something else is said."""
        self._unpushed_s = 0.0
        self._asked = 0.0
        self._jobs: deque[Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._listener: TurnListener | None = None
        self._unheard: Sound | None = None
        """A turn that has not been understood yet; what is said meanwhile belongs to it."""

    # What a connection does.

    def say(self, text: str) -> None:
        """Speak a text after what is being spoken. Raises UsageError where that is not possible."""
        self._check(text, "say")
        if len(self._jobs) >= _MAX_WAITING:
            raise UsageError(
                f"say: {_MAX_WAITING} texts wait to be spoken already; send this one later"
            )
        self._start(partial(self._say, text))

    def ask(self, text: str) -> None:
        """Answer a question, in place of what is being said. Raises UsageError."""
        self._check(text, "ask")
        self._check_chat()
        self.interrupt_speech()
        self._start(partial(self._answer_question, text))

    def hear(self, samples: NDArray[np.int16], sample_rate: int) -> None:
        """Listen to somebody who asks. Raises UsageError where nobody would answer."""
        self._check_chat()
        if self._services.asr is None:
            raise UsageError("audio: this server understands no speech; start it with --asr_url")
        for event in self._heard(samples, sample_rate):
            if isinstance(event, VoiceBegan):
                unheard = self._unheard
                self.interrupt_speech()
                self._unheard = unheard
                self.emit({"type": "turn", "state": "hearing"})
            else:
                self._take_turn(event)

    def watch(self, samples: NDArray[np.int16], sample_rate: int) -> None:
        """Interrupt when somebody speaks; what is said is not kept. Raises UsageError."""
        if self._services.make_detector is None:
            raise UsageError("audio: this server detects no voices; pip install 'lipcast[vad]'")
        for event in self._heard(samples, sample_rate):
            if isinstance(event, VoiceBegan):
                self.interrupt_speech()

    def end_turn(self) -> None:
        """End the turn of whoever asks."""
        ended = self._listener.end() if self._listener is not None else None
        if ended is not None:
            self._take_turn(ended)

    def interrupt_speech(self) -> None:
        """Interrupt where something is said or being prepared; tells the client."""
        if self._task is not None or self._live.state is not LiveState.IDLE:
            epoch = self.interrupt()
            self.emit({"type": "interrupted", "epoch": epoch})

    def interrupt(self) -> int:
        """Drop what is said and what waits, and begin a new epoch; returns its number."""
        self._jobs.clear()
        if self._answer is not None:
            self._answer.cut(self._unspoken_s())
            self._answer = None
        if self._task is not None:
            self._ending.add(self._task)
            self._task.add_done_callback(self._ending.discard)
            self._task.cancel()
            self._task = None
            self.emit({"type": "turn", "state": "waiting"})
        self._unpushed_s, self._unheard, self._asked = 0.0, None, 0.0
        return self._live.interrupt()

    async def close(self) -> None:
        """End all work."""
        self._jobs.clear()
        tasks = [*self._ending, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One thing after the other.

    def _start(self, job: Job) -> None:
        self._jobs.append(job)
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._jobs:
            job = self._jobs.popleft()
            try:
                await job()
            except CancelledError:
                return  # the session has been closed
            except LipcastError as error:
                self._fail(str(error))
            except Exception as error:  # the session goes on whatever happens
                _log.exception("the speech loop has failed")
                self._fail(f"the speech loop has failed ({error!r}); the server's log says more")
        self._task = None
        self.emit({"type": "turn", "state": "waiting"})

    def _fail(self, message: str) -> None:
        self._asked = 0.0
        self._metrics.speech_failures.inc()
        log_event("speech failed", level=logging.WARNING, session=self._label, error=message)
        self.emit({"type": "error", "code": "speech", "message": message})
        with suppress(CancelledError):
            self._live.end_utterance()

    async def _say(self, text: str) -> None:
        self._answer = None
        await self._speak(text, lambda _: None)
        self._live.end_utterance()

    async def _answer_turn(self, sound: Sound) -> None:
        assert self._services.asr is not None
        self.emit({"type": "turn", "state": "thinking"})
        self._unheard = sound
        text = await self._services.asr.transcribe(sound)
        self._unheard = None
        self.emit({"type": "transcript", "text": text[:MAX_TEXT]})
        if text:
            await self._answer_question(text[:MAX_TEXT])

    async def _answer_question(self, question: str) -> None:
        self.emit({"type": "turn", "state": "thinking"})
        self._asked = self._asked or time.monotonic()
        answer = self._conversation.ask(question)
        messages = self._conversation.messages()
        self._answer = answer
        async with self._sentences(messages) as sentences:
            while (sentence := await sentences.get()) is not None:
                if isinstance(sentence, BaseException):
                    raise sentence
                self.emit({"type": "answer", "text": sentence, "done": False})
                answer.begin(sentence)
                await self._speak(_MARKUP.sub("", sentence), answer.extend)
        self._live.end_utterance()
        self.emit({"type": "answer", "text": "", "done": True})

    @asynccontextmanager
    async def _sentences(
        self, messages: list[dict[str, str]]
    ) -> AsyncIterator[asyncio.Queue[str | BaseException | None]]:
        """Read an answer while it is spoken; None after the last sentence, or what went wrong."""
        found: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        assert self._services.llm is not None
        sentences = sentences_of(self._services.llm.answer(messages))

        async def read() -> None:
            try:
                async with aclosing(sentences):
                    async for sentence in sentences:
                        found.put_nowait(sentence)
                found.put_nowait(None)
            except Exception as error:
                found.put_nowait(error)

        reader = asyncio.create_task(read())
        try:
            yield found
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    # Sound.

    async def _speak(self, text: str, count: Callable[[float], None]) -> None:
        """Push the speech of a text; `count` is told how long every piece lasts."""
        if not _has_words(text):
            return
        assert self._services.tts is not None
        async with aclosing(self._services.tts.speak(text)) as sounds:
            async for sound in sounds:
                count(sound.seconds)
                self._unpushed_s = sound.seconds
                await self._push(sound)

    async def _push(self, sound: Sound) -> None:
        step = round(_PIECE_S * sound.sample_rate)
        for start in range(0, len(sound.samples), step):
            await self._wait_for_room()
            piece = sound.samples[start : start + step]
            self._live.push_audio(piece, sample_rate=sound.sample_rate)
            self._unpushed_s -= len(piece) / sound.sample_rate
            if self._asked:
                self._metrics.answer.observe(time.monotonic() - self._asked)
                self._asked = 0.0

    async def _wait_for_room(self) -> None:
        """Wait until little sound is left to be spoken."""
        most = min(_AHEAD_S, self._live.limits.max_pending_s / 2)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop may have been closed
                loop.call_soon_threadsafe(changed.set)

        with self._live.listening(wake):
            while self._live.stats().pending_s > most and not self._live.has_ended:
                await changed.wait()
                changed.clear()

    def _unspoken_s(self) -> float:
        """Return how much was made and has not been heard."""
        if self._live.state is LiveState.IDLE and self._unpushed_s <= 0:
            return 0.0
        stats = self._live.stats()
        queued_s = stats.num_frames_queued / VIDEO_FPS
        return max(0.0, self._unpushed_s) + stats.pending_s + queued_s + self.ahead_s()

    def _heard(self, samples: NDArray[np.int16], sample_rate: int) -> list[VoiceBegan | TurnEnded]:
        if self._listener is None:
            make = self._services.make_detector
            self._listener = TurnListener(None if make is None else make())
        return list(self._listener.push(samples, sample_rate))

    def _take_turn(self, turn: TurnEnded) -> None:
        self._asked, sound = time.monotonic(), turn.sound
        if self._unheard is not None:
            whole = np.concatenate([self._unheard.samples, sound.samples])
            sound = Sound(whole[-round(MAX_TURN_S * sound.sample_rate) :], sound.sample_rate)
        self._start(partial(self._answer_turn, sound))

    def _check(self, text: str, name: str) -> None:
        if self._services.tts is None:
            raise UsageError(
                f"{name}: this server has no speech synthesis; pip install 'lipcast[tts]' there, or start "
                "it with --tts URL"
            )
        if not isinstance(text, str) or not _has_words(text) or len(text) > MAX_TEXT:
            raise UsageError(f"{name}: expected a text with words, of 1 to {MAX_TEXT} characters")

    def _check_chat(self) -> None:
        if self._services.llm is None:
            raise UsageError("ask: this server answers no questions; start it with --llm_url")


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)
