"""From the flags of `lipcast generate` to one checked request.

Input: the given flags. Output: a frozen `GenerateRequest`. Everything that can be known to be wrong
without loading a model is found here: flags, files that are not there, an output that cannot be
written. Raises UsageError, InputError, OutputError.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lipcast.cli.validate import ParsedFlags, RawFlags, parse_seconds, validate
from lipcast.config.generate_options import OPTION_NAMES, GenerateOptions
from lipcast.errors import InputError, NotBuiltError, UsageError
from lipcast.media.mp4 import check_target, explained
from lipcast.planning.gpu_options import GPU_OPTION_NAMES, GpuOptions
from lipcast.planning.memory_options import (
    MEMORY_OPTION_NAMES,
    MemoryOptions,
    make_memory_options,
)

_SUFFIX = ".mp4"
_MAX_SEED = 2**31


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One video to make."""

    image: Path
    audio: Path
    prompt: str | Path
    """A text, or the file of its embedding."""
    output: Path
    model: str
    device: str | None
    precision: str | None
    loras: tuple[str, ...]
    decoder: Path | None
    memory: MemoryOptions
    gpus: GpuOptions
    options: GenerateOptions
    segment_s: float | None
    """0: in one piece; None: as the sound's length asks for."""
    drawn: frozenset[str]
    """Of "seed" and "output", what is another one each time."""
    accepted: Mapping[str, str]


def read_request(given: Mapping[str, RawFlags]) -> GenerateRequest:
    """Judge the flags and check the files; the folder of the output is made."""
    parsed = validate(given)
    settings = parsed.settings
    options = _options(parsed)
    image = _input_file(settings, "image", "a picture")
    audio = _input_file(settings, "audio", "a sound")
    output = _output_file(settings, options)
    _check_output(output, (image, audio))
    return GenerateRequest(
        image=image,
        audio=audio,
        prompt=_prompt(settings),
        output=output,
        model=str(settings.get("model", "tiny")),
        device=_text(settings, "device"),
        precision=_text(settings, "precision"),
        loras=tuple(str(settings.get("lora", "")).splitlines()),
        decoder=_input_file(settings, "decoder", "a decoder") if "decoder" in settings else None,
        memory=_memory(parsed),
        gpus=_gpus(parsed),
        options=options,
        segment_s=parse_seconds("segment", str(settings["segment"]))
        if "segment" in settings
        else None,
        drawn=_drawn(settings),
        accepted=dict(parsed.accepted),
    )


def _drawn(settings: Mapping[str, Any]) -> frozenset[str]:
    found = {"seed"} if settings.get("seed", 0) < 0 else set()
    return frozenset(found | ({"output"} if "save_dir" in settings else set()))


def _prompt(settings: Mapping[str, object]) -> str | Path:
    if "prompt_embedding" not in settings:
        return str(settings.get("prompt", ""))
    if "prompt" in settings:
        raise UsageError("expected --prompt or --prompt_embedding, got both; leave one out")
    return _input_file(settings, "prompt_embedding", "a prompt embedding")


def _text(settings: Mapping[str, object], name: str) -> str | None:
    return str(settings[name]) if name in settings else None


def _options(parsed: ParsedFlags) -> GenerateOptions:
    values: dict[str, Any] = {k: v for k, v in parsed.settings.items() if k in OPTION_NAMES}
    if values.get("seed", 0) < 0:
        values["seed"] = secrets.randbelow(_MAX_SEED)
    return GenerateOptions(**values)


def _memory(parsed: ParsedFlags) -> MemoryOptions:
    settings = parsed.settings
    return make_memory_options({k: v for k, v in settings.items() if k in MEMORY_OPTION_NAMES})


def _gpus(parsed: ParsedFlags) -> GpuOptions:
    values: dict[str, Any] = {
        name: value for name, value in parsed.settings.items() if name in GPU_OPTION_NAMES
    }
    gpus = GpuOptions(**values)
    if gpus.num_gpus > 1 and "single_gpu" in parsed.accepted:
        raise UsageError(
            f"--single_gpu: expected one GPU, got {gpus.num_gpus}; leave one of them out"
        )
    return gpus


def _input_file(settings: Mapping[str, object], name: str, what: str) -> Path:
    if name not in settings:
        raise UsageError(f"--{name}: expected {what}, got none; give --{name} FILE")
    path = Path(str(settings[name])).expanduser()
    if path.is_file():
        return path
    if name == "audio" and "+" in path.name and not path.exists():
        raise NotBuiltError(
            f"--audio: several voices joined by '+' are not in this version; give one, got {path}"
        )
    found = "a folder" if path.is_dir() else "nothing there"
    raise InputError(f"--{name}: expected {what}, found {found}: {path}")


def _output_file(settings: Mapping[str, object], options: GenerateOptions) -> Path:
    if "save_dir" in settings and "output" in settings:
        raise UsageError("expected --output or --save_dir, got both; leave one out")
    if "save_dir" in settings:
        return Path(str(settings["save_dir"])).expanduser() / _name_of(settings, options)
    path = Path(str(settings.get("output", f"out{_SUFFIX}"))).expanduser()
    return path if path.suffix else path.with_name(path.name + _SUFFIX)


def _name_of(settings: Mapping[str, object], options: GenerateOptions) -> str:
    """Time, steps and prompt, as the public scripts name their files."""
    now = datetime.now().strftime("%Y%m%d_%H%M%S")
    steps = f"_{options.sample_steps}step" if options.sample_steps else ""
    words = "".join(c if c.isalnum() else "_" for c in str(settings.get("prompt", "")))[:50]
    return f"{now}{steps}_{words}".rstrip("_") + _SUFFIX


def _check_output(output: Path, inputs: tuple[Path, ...]) -> None:
    """Find out before the work that the file can be written, without touching what is there."""
    if any(output.exists() and output.samefile(path) for path in inputs):
        raise UsageError(f"--output: expected another file than the input, got {output}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(output, error) from error
    check_target(output)
