"""Signals that end a process politely: SIGTERM and SIGHUP are handled like Ctrl-C.

The finished part of a video is then kept and a job goes back to the queue, whoever sends the signal: a
service manager, a batch system, or a terminal that is closed. Some send several at once, and what is being
tidied up must not be interrupted by the second.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP")
_TOGETHER_S = 5.0
"""Within this time after a signal, others are taken for the same request."""


def interrupt_on_termination() -> None:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP, where the parent does not ignore them (nohup)."""
    last_s = -_TOGETHER_S

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= _TOGETHER_S:
            last_s = now_s
            raise KeyboardInterrupt

    for number in _known(_NAMES):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP from here on."""
    for number in _known(("SIGINT", *_NAMES)):
        signal.signal(number, signal.SIG_IGN)


def _known(names: tuple[str, ...]) -> list[signal.Signals]:
    """Return those of the signals that this platform has."""
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]
