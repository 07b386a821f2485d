"""No bytes make a parser of weight files raise anything but an error of Lipcast: the soak, briefly."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from lipcast.errors import LipcastError
from profiles import examples

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "soak"))
TARGETS: dict[str, Callable[[], None]] = importlib.import_module("fuzz_weights").targets()


@pytest.mark.parametrize("parser", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_no_input_shows_a_traceback(parser: str) -> None:
    test: Any = TARGETS[parser]
    inner, counts = test.hypothesis.inner_test, {"read": 0, "refused": 0}

    @wraps(inner)
    def tried(*inputs: Any, **named: Any) -> None:
        try:
            inner(*inputs, **named)
            counts["read"] += 1
        except LipcastError:
            counts["refused"] += 1

    test.hypothesis.inner_test = tried
    brief = settings(
        max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck)
    )
    try:
        brief(test)()
    finally:
        test.hypothesis.inner_test = inner
    assert sum(counts.values()) >= 20
