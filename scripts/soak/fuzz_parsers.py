"""Fuzz every parser of files and print how many inputs each took, and every traceback.

    .venv/bin/python scripts/soak/fuzz_parsers.py --inputs 100000
    .venv/bin/python scripts/soak/fuzz_parsers.py --only tables --inputs 5000 --seed 7

The inputs are shared out evenly among the parsers. A parser may read its input or raise an error of
`lipcast.errors`; anything else is a find, printed with the smallest input that shows it. Ends with
status 1 if there was one. The last line is JSON.

The fuzzers are hypothesis tests in the modules of `MODULES`, each of which has

    def targets() -> dict[str, Callable[[], None]]

which returns a test for each parser, by the parser's name: a function decorated with
`hypothesis.given`, and with no `settings`, that hands one input to the parser. It does not catch
LipcastError: this script counts those. `fuzz_inputs` makes broken copies of good files.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings

from lipcast.errors import LipcastError

MODULES = ("fuzz_tables", "fuzz_weights", "fuzz_media")
Test = Callable[[], None]
_ROUND = 200
_MOST_FINDS = 3


@dataclass
class Count:
    """What became of the inputs of one parser."""

    read: int = 0
    refused: int = 0
    finds: int = 0
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="for all parsers together")
    parser.add_argument("--only", default="", help="parsers with this in their names")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    tests = {name: test for name, test in all_targets().items() if options.only in name}
    if not tests:
        parser.error(f"--only: no parser is called {options.only!r}")
    each = -(-options.inputs // len(tests))
    counts = {}
    for name, test in tests.items():
        counts[name] = count = fuzz(test, num_inputs=each, start=options.seed)
        print(f"{name:32} {count.read:8} read {count.refused:8} refused {count.finds:3} finds "
              f"{count.seconds:7.1f} s", flush=True)  # fmt: skip
    found = sum(count.finds for count in counts.values())
    num_inputs = sum(count.read + count.refused + count.finds for count in counts.values())
    print(json.dumps({
        "inputs": num_inputs, "finds": found,
        "parsers": {name: vars(count) for name, count in counts.items()},
    }))  # fmt: skip
    return int(found > 0)


def all_targets() -> dict[str, Test]:
    """Return the tests of all modules that are there, by the parser's name."""
    # Before the import: a test keeps the settings of the moment when it is made.
    settings.register_profile(
        "fuzz", max_examples=_ROUND, deadline=None, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    settings.load_profile("fuzz")
    sys.path.insert(0, str(Path(__file__).parent))
    found: dict[str, Test] = {}
    for name in MODULES:
        if importlib.util.find_spec(name) is not None:
            found |= importlib.import_module(name).targets()
    return found


def fuzz(test: Test, *, num_inputs: int, start: int) -> Count:
    """Run one test with `num_inputs` inputs, in rounds; a parser with several finds is left."""
    count, began = Count(), time.perf_counter()
    handle: Any = test
    inner = handle.hypothesis.inner_test

    @wraps(inner)
    def counted(*args: Any, **inputs: Any) -> None:
        try:
            inner(*args, **inputs)
            count.read += 1
        except LipcastError:
            count.refused += 1

    handle.hypothesis.inner_test = counted
    rounds = 0
    while count.read + count.refused < num_inputs and count.finds < _MOST_FINDS:
        before = count.read + count.refused
        _round(seed(start + rounds)(handle), count)
        rounds += 1
        if count.read + count.refused == before:  # every input there is was tried
            break
    count.seconds = round(time.perf_counter() - began, 1)
    return count


def _round(test: Test, count: Count) -> None:
    """Run a test once; print and count what it finds."""
    try:
        test()
    except Exception:
        count.finds += 1
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
