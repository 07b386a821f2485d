"""A server for every test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from in_process import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running
