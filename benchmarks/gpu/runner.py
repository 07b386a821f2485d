"""Run the parts of a check, each in a process of its own with a time limit.

Output: after every part one JSON document with everything found so far, a table last. The exit code is
the number of refuted claims; a part that crashes or takes too long is a refuted claim.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.report import Report, Settings
from lipcast.lab.driver import listed_cards

COMMAND_LIMIT_S = 530
"""Nine minutes less what starting and writing take."""
SCRIPT = Path(__file__).parents[1] / "gpu_check.py"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of a check."""

    name: str
    run: Callable[[Settings, Report], None]
    limit_s: float


def run_one(part: Part, settings: Settings) -> int:
    """Run a part in this process."""
    part.run(settings, Report(part_file(settings, part.name)))
    return 0


def run_all(parts: Sequence[Part], settings: Settings) -> int:
    """Run the parts one after the other and print the table. Returns the number of refuted claims."""
    settings.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    found: dict[str, Any] = {}
    for part in parts:
        left_s = COMMAND_LIMIT_S - (time.monotonic() - begin)
        # On a CPU the checks themselves are tried out, in whatever time that takes.
        limit_s = min(part.limit_s, left_s) if settings.is_cuda else 10 * part.limit_s
        found[part.name] = _run_apart(part, settings, limit_s=limit_s)
        document = {
            "command": settings.command,
            "model": settings.model,
            "device": device_name(settings),
            "parts": found,
        }
        (settings.out / f"{settings.command}.json").write_text(json.dumps(document, indent=1))
        print(f"{part.name}: {_summary(found[part.name])}", flush=True)
    print(table(found))
    return num_refuted(found)


def device_name(settings: Settings) -> str:
    """The card's name as the driver gives it, or "cpu"; asking takes no memory of the card."""
    cards = listed_cards() if settings.is_cuda else ()
    return cards[settings.device.index or 0].name if cards else settings.device.type


def part_file(settings: Settings, name: str) -> Path:
    """Where a part writes what it finds."""
    return settings.out / f"{settings.command}-{name}.json"


def _run_apart(part: Part, settings: Settings, *, limit_s: float) -> dict[str, Any]:
    path = part_file(settings, part.name)
    path.unlink(missing_ok=True)
    if limit_s < 1:
        return {
            "seconds": 0.0,
            "figures": {},
            "claims": [_not_run("the command's time is used up")],
        }
    begin = time.monotonic()
    end = _end_of(_command(part.name, settings), limit_s)
    found = json.loads(path.read_text()) if path.exists() else {"figures": {}, "claims": []}
    if end is not None:
        found["claims"].append({"text": "the part finishes", "holds": False, "found": end})
    return {"seconds": round(time.monotonic() - begin, 1), **found}


def _command(name: str, settings: Settings) -> list[str]:
    options = {"--device": str(settings.device), "--model": settings.model, "--part": name}
    given = [text for option, value in options.items() for text in (option, value)]
    return [sys.executable, str(SCRIPT), settings.command, "--out", str(settings.out), *given]


def _end_of(command: Sequence[str], limit_s: float) -> str | None:
    """How a process ended, where it did not end well."""
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"exit code {done.returncode}: " + "\n".join(lines[-12:])


def _not_run(reason: str) -> dict[str, Any]:
    return {"text": "the part is run", "holds": None, "found": reason}


def num_refuted(found: dict[str, Any]) -> int:
    """How many claims do not hold."""
    claims = (claim for part in found.values() for claim in part["claims"])
    return sum(claim["holds"] is False for claim in claims)


def _summary(found: dict[str, Any]) -> str:
    holds = [claim["holds"] for claim in found["claims"]]
    counts = (
        f"{holds.count(True)} hold, {holds.count(False)} refuted, {holds.count(None)} not tried"
    )
    return f"{counts}, {found['seconds']} s"


def table(found: dict[str, Any]) -> str:
    """Every claim on a line."""
    marks = {True: "holds", False: "REFUTED", None: "not tried"}
    lines = [""]
    for name, part in found.items():
        for claim in part["claims"]:
            text = " ".join(claim["found"].split())[:160]
            lines.append(f"{marks[claim['holds']]:10}{name:14}{claim['text']}: {text}")
    lines.append(f"{num_refuted(found)} claims refuted")
    return "\n".join(lines)
