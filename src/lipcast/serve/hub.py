"""The live sessions of one server: opened, attached to connections, closed when nobody needs them.

Input: requests and connections, in an event loop. Output: hosted sessions, or an error that says why not.
State: the model, which is loaded once in a thread, and the sessions. A session without a connection computes
nothing; after a grace time it is closed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lipcast.config.generate_options import GenerateOptions
from lipcast.engine.live import LiveSession
from lipcast.engine.live_types import LiveState, LiveStats
from lipcast.errors import AdmissionError, BusyError, LipcastError, NotReadyError
from lipcast.serve.logs import log_event
from lipcast.serve.metrics import Metrics
from lipcast.serve.portraits import Portraits
from lipcast.serve.settings import ServeSettings
from lipcast.serve.spare import Spare, Wanted, wait_for_pictures
from lipcast.serve.talk import Talk
from lipcast.serve.video_queue import VideoQueue, made_with
from lipcast.speech.services import SpeechServices

SAMPLE_RATE = 48_000
_LOOK_S = 1.0
_SPEAKING = {LiveState.LISTENING, LiveState.SPEAKING, LiveState.DRAINING}


class Model(Protocol):
    """What the server needs of `Lipcast`."""

    def live(
        self, *, image: Any, prompt: str, sample_rate: int, options: GenerateOptions
    ) -> LiveSession: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Hosted:
    """A session of this server."""

    live: LiveSession
    wanted: Wanted
    talk: Talk
    label: str
    """For logs; says nothing that would let anybody in."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    """Whoever knows it may connect."""
    opened: float = field(default_factory=time.monotonic)
    active: float = field(default_factory=time.monotonic)
    detached: float | None = field(default_factory=time.monotonic)
    """Since when nobody is connected; None: somebody is."""
    leave: Callable[[str], None] | None = None
    """Ends the connection, which is told why."""
    seen: LiveStats | None = None


class Hub:
    """Holds the model and the sessions."""

    def __init__(
        self,
        load: Callable[[], Model],
        settings: ServeSettings,
        *,
        options: GenerateOptions | None = None,
        speech: SpeechServices | None = None,
        device_bytes: Callable[[Model], int] = lambda _: 0,
        videos: VideoQueue | None = None,
    ) -> None:
        """`options` hold for every session; a request may choose the seed. `speech` speaks and answers.

        `videos`: those that are made with the same model; None: with the embedded one.
        """
        self.speech = speech or SpeechServices()
        self.settings, self.portraits = settings, Portraits(max_pixels=settings.max_pixels)
        self.metrics = Metrics(lambda: 0 if self._model is None else device_bytes(self._model))
        self.failure: Exception | None = None
        """Why the model could not be loaded."""
        self.on_failure: Callable[[], None] = lambda: None
        self._load, self._options = load, options or GenerateOptions()
        self.videos = videos or VideoQueue(settings, options=self._options, made_with=made_with())
        self.videos.is_speaking = self._is_speaking
        self._model: Model | None = None
        self._spare = Spare(self._prepared)
        self._sessions: dict[str, Hosted] = {}
        self._opening = 0
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether sessions can be opened."""
        return self._model is not None

    @property
    def is_prepared(self) -> bool:
        """Whether a session is open ahead."""
        return self._spare.is_ready

    @property
    def num_sessions(self) -> int:
        """Sessions that are open or being opened."""
        return len(self._sessions) + self._opening

    async def start(self) -> None:
        """Begin to load the model, and to look after the sessions."""
        loop = asyncio.get_running_loop()

        def give_way() -> None:
            loop.call_soon_threadsafe(self._spare.drop)

        self.videos.on_refused = give_way
        self._tasks = [
            asyncio.create_task(self._make_ready()),
            asyncio.create_task(self._look_after()),
        ]

    async def stop(self) -> None:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(self.close(hosted, "shutdown") for hosted in self.sessions()))
        await self.speech.close()
        await asyncio.to_thread(self.videos.stop)
        await self._spare.stop()
        if self._model is not None:
            await asyncio.to_thread(self._model.close)

    def sessions(self) -> list[Hosted]:
        """Return the open sessions."""
        return list(self._sessions.values())

    async def open(self, *, portrait: str, prompt: str, seed: int | None) -> Hosted:
        """Open a session. Raises BusyError, InputError, UsageError, MemoryBudgetError."""
        if self._model is None:
            raise NotReadyError("the model is still being loaded; try again in a moment")
        if self.num_sessions >= self.settings.max_sessions:
            self.metrics.refused.inc()
            raise BusyError(f"all {self.settings.max_sessions} sessions are taken; try again later")
        wanted = Wanted(portrait, prompt, seed)
        self._opening += 1
        try:
            live = await self._spare.take(wanted) or await self._open(wanted)
        except AdmissionError as error:
            self.metrics.refused.inc()
            self.videos.make_room()
            raise BusyError(f"{error}; try again later") from error
        finally:
            self._opening -= 1
        live.pause()
        label = f"s{next(self._numbers)}"
        talk = Talk(live, self.speech, metrics=self.metrics, label=label)
        hosted = Hosted(live, wanted, talk, label)
        self._sessions[hosted.key] = hosted
        self.metrics.opened.inc()
        log_event("session opened", session=hosted.label, portrait=portrait)
        return hosted

    async def _open(self, wanted: Wanted) -> LiveSession:
        try:
            return await asyncio.to_thread(self._live, self._model, wanted)
        except AdmissionError:
            await self._spare.settle()  # it may hold the memory until it is closed
            return await asyncio.to_thread(self._live, self._model, wanted)

    def prepare(self, wanted: Wanted) -> bool:
        """Open a session ahead, where nobody is served meanwhile. Raises InputError for no portrait."""
        self.portraits.get(wanted.portrait)
        if self._model is None or self.num_sessions or not self.settings.prepare:
            return False
        self._spare.want(wanted)
        return True

    def _live(self, model: Model | None, wanted: Wanted) -> LiveSession:
        assert model is not None
        options = self._options
        if wanted.seed is not None:
            options = replace(options, seed=wanted.seed)
        image = self.portraits.get(wanted.portrait)
        return model.live(
            image=image, prompt=wanted.prompt, sample_rate=SAMPLE_RATE, options=options
        )

    def _prepared(self, wanted: Wanted, model: Model | None = None) -> LiveSession:
        """Return a session whose first pictures are ready, paused."""
        live = self._live(model or self._model, wanted)
        wait_for_pictures(live)
        live.pause()
        return live

    def find(self, key: str) -> Hosted | None:
        """Return the session of a key."""
        return self._sessions.get(key)

    def attach(self, hosted: Hosted, leave: Callable[[str], None]) -> None:
        """Give a session to a connection; the one that has it is ended."""
        if hosted.leave is not None:
            hosted.leave("replaced")
        hosted.leave, hosted.detached = leave, None
        hosted.active = time.monotonic()
        hosted.live.resume()
        log_event("connected", session=hosted.label)

    def detach(self, hosted: Hosted, leave: Callable[[str], None], reason: str) -> None:
        """The connection has ended; the session waits for the next one."""
        if hosted.leave == leave and hosted.key in self._sessions:
            hosted.leave, hosted.detached = None, time.monotonic()
            hosted.live.pause()
            log_event("disconnected", session=hosted.label, reason=reason)

    async def close(self, hosted: Hosted, reason: str) -> None:
        """End a session and give its memory back."""
        if self._sessions.pop(hosted.key, None) is None:
            return
        self._count(hosted)
        if hosted.leave is not None:
            hosted.leave(reason)
        await hosted.talk.close()
        await asyncio.to_thread(hosted.live.close)
        log_event("session closed", session=hosted.label, reason=reason)
        if reason != "shutdown":
            with suppress(LipcastError):  # the portrait may have been forgotten
                self.prepare(hosted.wanted)

    def _is_speaking(self) -> bool:
        seen = [hosted.seen for hosted in self.sessions() if hosted.detached is None]
        return any(stats is not None and stats.state in _SPEAKING for stats in seen)

    async def _make_ready(self) -> None:
        """Load the model and make a block with it, so that the first session does not pay for it."""
        began = time.monotonic()
        wanted = Wanted(self.portraits.example_names[0])
        try:
            if self.speech.tts is not None:
                await self.speech.tts.prepare()
            model, live = await asyncio.to_thread(self._loaded, wanted)
        except Exception as error:
            self.failure = error
            log_event("the model cannot be loaded", level=logging.ERROR, error=str(error))
            self.on_failure()
            return
        if self.settings.prepare:
            self._spare.keep(wanted, live)
        else:
            await asyncio.to_thread(live.close)
        self._model = model
        self.videos.start(model)
        log_event("ready", seconds=round(time.monotonic() - began, 1))

    def _loaded(self, wanted: Wanted) -> tuple[Model, LiveSession]:
        model = self._load()
        return model, self._prepared(wanted, model)

    async def _look_after(self) -> None:
        """Close what has ended or is not needed any more, and count."""
        while True:
            await asyncio.sleep(_LOOK_S)
            made = sum(self._count(hosted) for hosted in self.sessions())
            seen = [hosted.seen for hosted in self.sessions() if hosted.seen is not None]
            self.metrics.show(seen, made / _LOOK_S)
            for hosted in self.sessions():
                reason = self._reason_to_close(hosted)
                if reason is not None:
                    await self.close(hosted, reason)

    def _reason_to_close(self, hosted: Hosted) -> str | None:
        now, settings = time.monotonic(), self.settings
        if hosted.detached is not None and now - hosted.detached > settings.grace_s:
            return "nobody connected"
        if now - hosted.opened > settings.max_session_s:
            return "time limit"
        if now - hosted.active > settings.idle_s and hosted.seen is not None:
            is_quiet = hosted.seen.state in {LiveState.IDLE, LiveState.LISTENING}
            return "idle" if is_quiet or hosted.detached is not None else None
        if hosted.live.has_ended and hosted.detached is not None:
            return "ended"
        return None

    def _count(self, hosted: Hosted) -> int:
        """Count what a session has done since the last look; returns the frames that it has made."""
        before, now = hosted.seen, hosted.live.stats()
        hosted.seen = now
        self.metrics.count(before, now)
        return now.num_frames_made - (0 if before is None else before.num_frames_made)
