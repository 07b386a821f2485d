"""Recognise the errors by which torch.distributed reports that another rank is gone.

NCCL and the stores raise types of their own; gloo raises a plain `RuntimeError` that only its text tells
from other errors. A rank that reports such an error is not the cause: the main process looks for another.
"""

from __future__ import annotations

import re

import torch.distributed as dist

from lipcast.memory.oom import is_out_of_memory

_TYPES = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError, ConnectionError)
_PATTERNS = (
    r"\bConnection (closed|reset) by peer\b",
    r"\bBroken pipe\b",
    r"\bSocket closed\b",
    # gloo: a time-out of an operation, of a pair whose other end is gone, or of connecting to it.
    r"\bTimed out waiting \d+ms for (recv|send) operation\b",
    r"\bApplication timeout caused pair closure\b",
    r"\bConnect timeout\b",
    r"\bGloo connectFullMesh failed\b",
    # NCCL, where the error comes from a watchdog thread and has lost its type.
    r"\bncclRemoteError\b",
    r"\bncclSystemError\b",
)
_LOST_PEER = re.compile("|".join(_PATTERNS))


def is_lost_peer(error: BaseException) -> bool:
    """Return whether `error` says that another rank of the group cannot be reached any more."""
    if is_out_of_memory(error):
        return False
    if isinstance(error, _TYPES):
        return True
    return isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)) is not None
