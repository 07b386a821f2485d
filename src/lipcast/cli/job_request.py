"""A checked request as a job keeps it: plain data, with the hashes of its files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lipcast.cli.request import GenerateRequest
from lipcast.errors import UsageError

SEGMENT_S = 60.0


def as_job(request: GenerateRequest, **how: Any) -> dict[str, Any]:
    """The request of a job; `how` says more of it. Raises UsageError, InputError."""
    from lipcast.jobs.runner import file_sha256

    segment_s = SEGMENT_S if request.segment_s is None else request.segment_s
    if segment_s <= 0:
        raise UsageError("--segment: expected a length above 0 for a job, got 0; give 60s")
    files = {"image": request.image.resolve(), "audio": request.audio.resolve()}
    is_file = isinstance(request.prompt, Path)
    return {
        **{name: str(path) for name, path in files.items()},
        "sha256": {name: file_sha256(path) for name, path in files.items()},
        "prompt": str(Path(request.prompt).resolve()) if is_file else request.prompt,
        "prompt_is_file": is_file,
        "output": str(request.output.resolve()),
        "model": request.model,
        "device": request.device,
        "precision": request.precision,
        "loras": list(request.loras),
        "decoder": None if request.decoder is None else str(request.decoder.resolve()),
        "memory": asdict(request.memory),
        "gpus": asdict(request.gpus),
        "options": asdict(request.options),
        "segment_s": segment_s,
        "keep_segments": False,
        "independent": False,
        "webhook": None,
        "hls": False,
        **how,
    }
