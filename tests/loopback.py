"""WebRTC on the loopback interface, which every machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM_FLAGS = (
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let the peers of this process connect there only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aioice.ice.get_host_addresses", lambda **_: ["127.0.0.1"])
        yield
