"""Work that Ctrl-C and other signals end only afterwards.

Pictures after one that is lost between the encoder and the file cannot be decoded. And FFmpeg's library may
be calling back into Python just then, which drops what a signal raises.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Handle signals that come meanwhile when the body has ended. Only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = (signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
    handlers = {number: signal.getsignal(number) for number in known}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    held: list[int] = []
    is_held = True

    def hold(number: int, frame: FrameType | None) -> None:
        handler = handlers[signal.Signals(number)]
        if is_held:
            held.append(number)
        elif callable(handler):
            handler(number, frame)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        is_held = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
