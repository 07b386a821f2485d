"""What one part of a check found: figures, and claims that hold or are refuted.

Every entry is written to a file at once, so that a part that is killed keeps what it has found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Settings:
    """Where a check runs, and with which model."""

    command: str
    device: torch.device
    model: str
    """"full": the published shapes; "small": tiny ones, for trying the checks on a CPU."""
    out: Path
    """Directory of the JSON files."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_full(self) -> bool:
        return self.model == "full"


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement; `holds` is None where it could not be tried."""

    text: str
    holds: bool | None
    found: str


class Report:
    """Collects what a part finds, into one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}
        self.claims: list[Claim] = []
        self._write()

    def figure(self, name: str, value: Any) -> None:
        """Keep a measured number, or a table of them."""
        self.figures[name] = value
        self._write()

    def claim(self, text: str, holds: bool, found: object) -> None:
        """State something, and what was found."""
        self.claims.append(Claim(text, bool(holds), _readable(found)))
        self._write()

    def skip(self, text: str, reason: str) -> None:
        """Say that a claim could not be tried here."""
        self.claims.append(Claim(text, None, reason))
        self._write()

    @contextmanager
    def attempt(self, text: str) -> Iterator[None]:
        """Claim that what follows runs: an exception refutes it and does not end the part."""
        try:
            yield
        except Exception as error:  # any failure of the code under test is a finding
            self.claim(text, False, f"{type(error).__name__}: {error}"[:500])

    def _write(self) -> None:
        document = {"figures": self.figures, "claims": [asdict(claim) for claim in self.claims]}
        self._path.write_text(json.dumps(document, indent=1, default=str))


def _readable(found: object) -> str:
    return f"{found:.4g}" if isinstance(found, float) else str(found)
