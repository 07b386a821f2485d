"""A checked request as a job keeps it: plain data, with the hashes of its files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lipcast.cli.request import DEFAULT_MODEL, GenerateRequest
from lipcast.cli.types import FOLDER
from lipcast.errors import UsageError

SEGMENT_S = 60.0


def as_job(request: GenerateRequest, **how: Any) -> dict[str, Any]:
    """Return a request as a job; `how` are fields that only jobs have. Raises UsageError, InputError."""
    from lipcast.jobs.runner import input_sha256
    from lipcast.weights.lora import parse_lora

    segment_s = SEGMENT_S if request.segment_s is None else request.segment_s
    if segment_s <= 0:
        raise UsageError("--segment: a job is made in segments; give a length above 0, such as 60s")
    is_file = isinstance(request.prompt, Path)
    loras = [parse_lora(text).path for text in request.loras]
    decoder = [] if request.decoder is None else [request.decoder]
    prompt = [Path(request.prompt)] if is_file else []
    files = [request.image, request.audio, *prompt, *decoder, *loras]
    return {
        "image": str(request.image.resolve()),
        "audio": str(request.audio.resolve()),
        "sha256": {str(path.resolve()): input_sha256(path) for path in files},
        "prompt": str(Path(request.prompt).resolve()) if is_file else request.prompt,
        "prompt_is_file": is_file,
        "output": str(request.output.resolve()),
        "model": _from_anywhere(request.model),
        "device": request.device,
        "precision": request.precision,
        "loras": [
            text.replace(str(path), str(path.resolve()), 1)
            for text, path in zip(request.loras, loras, strict=True)
        ],
        "decoder": None if request.decoder is None else str(request.decoder.resolve()),
        "memory": asdict(request.memory),
        "gpus": asdict(request.gpus),
        "options": asdict(request.options),
        "segment_s": segment_s,
        "keep_segments": False,
        "independent": False,
        "anonymous": False,
        "webhook": None,
        "hls": False,
        **how,
    }


def _from_anywhere(model: str) -> str:
    """Return a model's name as it is, a folder as an absolute path."""
    folder = FOLDER.convert(model, None, None)
    return model if model == DEFAULT_MODEL or not folder.is_dir() else str(folder.resolve())
