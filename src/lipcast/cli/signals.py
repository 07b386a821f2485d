"""Signals that end a process politely: SIGTERM and SIGHUP are handled like Ctrl-C.

The finished part of a video is then kept and a job goes back to the queue, whoever sends the signal: a
service manager, a batch system, or a terminal that is closed.
"""

from __future__ import annotations

import signal
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP")


def interrupt_on_termination() -> None:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP, where the parent does not ignore them (nohup)."""
    for number in _known(_NAMES):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP from here on."""
    for number in _known(("SIGINT", *_NAMES)):
        signal.signal(number, signal.SIG_IGN)


def _known(names: tuple[str, ...]) -> list[signal.Signals]:
    """Return those of the signals that this platform has."""
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
