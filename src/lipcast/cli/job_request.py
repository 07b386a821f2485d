"""A checked request as a job keeps it: plain data, with the hashes of its files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lipcast.cli.characters import as_job as characters_as_job
from lipcast.cli.characters import files_of
from lipcast.cli.request import DEFAULT_MODEL, GenerateRequest
from lipcast.cli.types import FILE
from lipcast.config.direction import UNDIRECTED, Direction
from lipcast.env import expand_home
from lipcast.errors import UsageError

SEGMENT_S = 60.0


def as_job(request: GenerateRequest, **how: Any) -> dict[str, Any]:
    """Return a request as a job; `how` are fields that only jobs have. Raises UsageError, InputError."""
    from lipcast.jobs.runner import input_sha256
    from lipcast.jobs.tasks import JOB_DEFAULTS

    segment_s = SEGMENT_S if request.segment_s is None else request.segment_s
    if segment_s <= 0:
        raise UsageError("--segment: a job is made in segments; give a length above 0, such as 60s")
    is_file = isinstance(request.prompt, Path)
    loras = [_lora_from_anywhere(text) for text in request.loras]
    decoder = [] if request.decoder is None else [request.decoder]
    prompt = [Path(request.prompt)] if is_file else []
    signing = request.signing
    signed = {} if signing is None else {"sign": signing.as_job()}
    spoken = {"characters": characters_as_job(request.characters)} if request.characters else {}
    if spoken and how.get("independent"):
        raise UsageError(
            "--independent_segments: the voices of several characters cannot be cut into them; leave it out"
        )
    directed, clips = _directed(request.direction)
    if directed and how.get("independent"):
        raise UsageError(
            "--independent_segments: every segment begins anew, which a directed video cannot; leave out "
            "what directs it, or make the segments one after the other"
        )
    files = [
        request.image,
        request.audio,
        *(path for character in request.characters for path in files_of(character)),
        *prompt,
        *decoder,
        *clips,
        *(path for _, path in loras if path is not None),
    ]
    return {
        "image": str(request.image.resolve()),
        "audio": str(request.audio.resolve()),
        "sha256": {str(path.resolve()): input_sha256(path) for path in dict.fromkeys(files)},
        "prompt": str(Path(request.prompt).resolve()) if is_file else request.prompt,
        "prompt_is_file": is_file,
        "output": str(request.output.resolve()),
        "model": _from_anywhere(request.model),
        "device": request.device,
        "precision": request.precision,
        "loras": [text for text, _ in loras],
        "decoder": None if request.decoder is None else str(request.decoder.resolve()),
        "memory": asdict(request.memory),
        "gpus": asdict(request.gpus),
        "options": asdict(request.options),
        "segment_s": segment_s,
        **JOB_DEFAULTS,
        **spoken,
        **directed,
        **signed,
        **how,
    }


def _directed(direction: Direction) -> tuple[dict[str, Any], list[Path]]:
    """Return the field of a directed job, with absolute paths, and the files of its clips."""
    if direction == UNDIRECTED:
        return {}, []
    from lipcast.media.clip import files_of

    found = asdict(direction)
    given = (name for name in ("pose_video", "continue_from") if found[name])
    clips = {name: Path(found[name]).resolve() for name in given}
    field = {"direction": found | {name: str(path) for name, path in clips.items()}}
    return field, [file for path in clips.values() for file in files_of(path)]


def _from_anywhere(model: str) -> str:
    """Return a model's name as it is, a folder or a file as an absolute path."""
    path = FILE.convert(model, None, None)
    return model if model == DEFAULT_MODEL or not path.exists() else str(path.resolve())


def _lora_from_anywhere(text: str) -> tuple[str, Path | None]:
    """Return an adapter with the absolute path of its file, and that path.

    The name of the public repository stays, and stands for a file of the model.
    """
    from lipcast.weights.adapters import adapter_file
    from lipcast.weights.checkpoint import ADAPTER_REPOSITORY
    from lipcast.weights.lora import parse_lora

    path = parse_lora(text).path
    if path.as_posix() == ADAPTER_REPOSITORY and not path.exists():
        return text, None
    file = adapter_file(expand_home(path)).resolve()
    return text.replace(str(path), str(file), 1), file
