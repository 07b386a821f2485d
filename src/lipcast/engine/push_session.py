"""A session whose sound is pushed while it runs, block by block; made by `Lipcast.session`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from lipcast.config.closing import Closing
from lipcast.engine.frames import FrameBlock
from lipcast.engine.live_timeline import PushSource
from lipcast.engine.session import Session


class PushSession(Closing):
    """A session whose sound is pushed while it runs."""

    def __init__(self, session: Session, source: PushSource) -> None:
        """Run a session on a source that it reads."""
        self._session = session
        self._source = source

    def push(self, samples: NDArray[Any]) -> None:
        """Append float (-1..1) or int16 PCM, [n] or [n, channels], at the session's sample rate."""
        self._source.push(samples)

    def finish(self) -> None:
        """Declare the sound finished: pad what is left to whole blocks and make them."""
        self._source.finish()

    def ready(self) -> Iterator[FrameBlock]:
        """Yield the blocks that the sound so far allows, without waiting for more."""
        return self._session.ready()

    def take(self) -> Iterator[FrameBlock]:
        """Yield the blocks that are finished, without computing any; for use with `Lipcast.tick`."""
        return self._session.take()

    @property
    def inner(self) -> Session:
        """The session that the sound is pushed to."""
        return self._session

    def __iter__(self) -> Iterator[FrameBlock]:
        """Yield every block; wait for `push` from another thread, end after `finish`."""
        return iter(self._session)

    def cancel(self) -> None:
        """End at once: whoever iterates gets CancelledError."""
        self._session.cancel()
        self._source.cancel()

    def close(self) -> None:
        """End and free; may be called again."""
        self.cancel()
        self._session.close()

    def report(self) -> dict[str, Any]:
        return self._session.report()
