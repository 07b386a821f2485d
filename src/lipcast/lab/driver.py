"""The cards that NVIDIA's driver lists, as its own tool shows them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from lipcast.planning.hardware import Capability

_FIELDS = ("name", "memory.total", "driver_version", "compute_cap")


@dataclass(frozen=True, slots=True)
class DriverCard:
    """One card as `nvidia-smi` shows it."""

    name: str
    memory_bytes: int | None
    """None for a card without memory of its own, such as a Jetson's."""
    driver_version: str
    capability: Capability | None
    """None from a driver that does not tell."""


def listed_cards() -> tuple[DriverCard, ...]:
    """Return the cards of this machine; none where there is no driver or it sees no card."""
    # Drivers before 2021 do not know the compute capability, and then answer nothing at all.
    listing = _query(_FIELDS) or _query(_FIELDS[:-1])
    return tuple(parsed_card(line) for line in listing.splitlines() if line.count(",") >= 2)


def parsed_card(line: str) -> DriverCard:
    """Return the card of "NVIDIA GeForce RTX 4090, 24564, 570.86, 8.9"; the memory is in MiB."""
    name, memory, version, *more = (part.strip() for part in line.split(","))
    capability = [part for word in more for part in word.split(".") if part.isdigit()]
    return DriverCard(
        name=name,
        memory_bytes=int(memory) * 2**20 if memory.isdigit() else None,
        driver_version=version,
        capability=(int(capability[0]), int(capability[1])) if len(capability) == 2 else None,
    )


def _query(fields: tuple[str, ...]) -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
