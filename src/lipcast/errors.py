"""Every error that Lipcast raises on purpose.

    LipcastError
    ├── UsageError          a wrong argument, flag or combination of them
    │   └── NotBuiltError   a known flag whose capability this version does not have
    ├── InputError          an image, a sound or a prompt that cannot be used
    ├── CheckpointError     a model file that is missing, broken or of another model
    ├── MemoryBudgetError   the request does not fit the memory that there is
    │   └── AdmissionError  it would fit, but other sessions of the model hold the memory
    ├── OutputError         the result cannot be written (no space, no right, lost mount)
    ├── RankError           one of several processes that make a video has failed or is gone
    ├── SpeechError         no speech synthesis, or a speech engine or a server that fails
    ├── BusyError           the server has no room for another session now
    │   ├── NotReadyError   the server is still loading its model
    │   └── QueueFullError  as many videos wait as the server keeps
    └── CancelledError      the session was cancelled or closed while somebody waited for it
        └── SessionFailedError  the session was ended by an earlier error, and gives no more frames

A message says what was expected, what came, and what to do. `exit_code` is what the
command line ends with.
"""

from __future__ import annotations


class LipcastError(Exception):
    """Base of all errors with an explanation for the user."""

    exit_code = 1


class UsageError(LipcastError):
    """The request itself is wrong."""

    exit_code = 2


class NotBuiltError(UsageError):
    """The request is understood, but this version cannot do it."""


class InputError(LipcastError):
    """A picture, a sound or a text cannot be used."""

    exit_code = 3


class CheckpointError(LipcastError):
    """A model file is missing, broken, or belongs to another model."""

    exit_code = 4


class MemoryBudgetError(LipcastError):
    """The request does not fit the memory that there is."""

    exit_code = 5


class AdmissionError(MemoryBudgetError):
    """The session would fit, but the sessions that are open hold the memory."""


class OutputError(LipcastError):
    """The result cannot be written."""

    exit_code = 6


class RankError(LipcastError):
    """One of the processes that make a video together has failed or is gone."""

    exit_code = 7


class SpeechError(LipcastError):
    """Text cannot be spoken, sound not understood or a question not answered."""

    exit_code = 8


class BusyError(LipcastError):
    """The server has no room for another session now."""


class NotReadyError(BusyError):
    """The server is still loading its model."""


class QueueFullError(BusyError):
    """As many videos wait as the server keeps."""


class CancelledError(LipcastError):
    """The session was cancelled or closed."""

    exit_code = 130


class SessionFailedError(CancelledError):
    """The session was ended by an earlier error."""
