"""From the options of `lipcast generate` to one checked request.

Input: the values of the given options. Output: a frozen `GenerateRequest`. Everything that can be known to
be wrong without loading a model is found here: values, files that are not there, an output that cannot be
written. Raises UsageError, InputError, OutputError.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.cli.characters import files_of, read_characters
from lipcast.cli.compat_flags import accepted_flags
from lipcast.cli.options import options_from
from lipcast.cli.types import checked_file, is_there
from lipcast.config.direction import UNDIRECTED, Direction
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import GpuOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.precision import Precision
from lipcast.errors import UsageError
from lipcast.media.signing import SigningKey, check_signed_target, signing_key
from lipcast.media.target import check_target, explained, output_path

if TYPE_CHECKING:
    from lipcast.media.characters import Character

DEFAULT_MODEL = "tiny"
_SUFFIX = ".mp4"
_MAX_SEED = 2**31
_MAX_NAME_WORDS = 50
"""Characters of the prompt in a file's name."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One video to make."""

    image: Path
    audio: Path
    """The voice; with `text`, the file of its speech; the first one of several characters."""
    characters: tuple[Character, ...]
    """Several people in one picture; none: one person speaks."""
    text: str | None
    prompt: str | Path
    """A text, or the file of its embedding."""
    direction: Direction
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
    """0: in one piece; None: depends on the length of the audio."""
    signing: SigningKey | None
    randomised_fields: frozenset[str]
    """Fields among "seed" and "output" that differ each time the same command runs."""
    accepted: Mapping[str, str]
    """Reasons by compatibility flag."""

    @property
    def voices(self) -> tuple[Path | None, ...]:
        """The sound of each person in the picture; None for one who says nothing."""
        said = (each.audio for each in self.characters)
        return tuple(x if isinstance(x, Path) else None for x in said) or (self.audio,)


def read_request(flags: Mapping[str, Any]) -> GenerateRequest:
    """Check the given options and their files; makes the folder of the output."""
    accepted, options, weights = accepted_flags(flags), generate_options(flags), precision(flags)
    if "pose_end" in flags and "pose_video" not in flags:
        raise UsageError("--pose_end: says what follows a pose video; give one with --pose_video")
    image, characters = _input_file(flags, "image", "a picture"), read_characters(flags)
    audio = _first_voice(characters) if characters else _audio_file(flags)
    output, is_automatic = _output_file(flags, options)
    others = [path for character in characters for path in files_of(character)]
    others += [flags[name] for name in ("prompts", "pose_video", "continue_from") if name in flags]
    _check_output(output, (image, *others, *(() if audio is None else (audio,))))
    request = GenerateRequest(
        image=image,
        # The speech of a text is made last, when nothing else can be refused.
        audio=audio or Path(),
        characters=characters,
        text=flags.get("text"),
        prompt=_prompt(flags),
        direction=_direction(flags),
        output=output,
        model=flags.get("model", DEFAULT_MODEL),
        device=flags.get("device"),
        precision=weights,
        loras=flags.get("lora", ()),
        decoder=_input_file(flags, "decoder", "a decoder") if "decoder" in flags else None,
        memory=options_from(MemoryOptions, flags),
        gpus=gpu_options(flags),
        options=options,
        segment_s=flags.get("segment"),
        signing=_signing(flags, output),
        randomised_fields=_randomised_fields(flags, is_automatic),
        accepted=accepted,
    )
    return request if audio else replace(request, audio=_spoken_file(flags))


def generate_options(flags: Mapping[str, Any]) -> GenerateOptions:
    """Return the options of a video; a negative seed becomes a random one."""
    seed, pose = flags.get("base_seed"), "pose_video" in flags
    if seed is None:
        return options_from(GenerateOptions, flags, pose=pose)
    seed = secrets.randbelow(_MAX_SEED) if seed < 0 else seed
    return options_from(GenerateOptions, flags, seed=seed, pose=pose)


def precision(flags: Mapping[str, Any]) -> Precision | None:
    """Return --precision, of which --fp8 is another spelling. Raises UsageError for both at odds."""
    named: Precision | None = flags.get("precision")
    if not flags.get("fp8"):
        return named
    if named not in (None, "fp8"):
        raise UsageError(
            f"--fp8: asks for precision fp8, and --precision for {named}; leave one of them out"
        )
    return "fp8"


def gpu_options(flags: Mapping[str, Any]) -> GpuOptions:
    """Return the options of several GPUs. Raises UsageError where --single_gpu contradicts them."""
    gpus = options_from(GpuOptions, flags)
    if gpus.num_gpus > 1 and flags.get("single_gpu"):
        raise UsageError(
            f"--single_gpu: expected one GPU, got {gpus.num_gpus}; leave one of them out"
        )
    return gpus


def _randomised_fields(flags: Mapping[str, Any], is_automatic: bool) -> frozenset[str]:
    seed = {"seed"} if flags.get("base_seed", 0) < 0 else set()
    return frozenset(seed | ({"output"} if is_automatic else set()))


def _prompt(flags: Mapping[str, Any]) -> str | Path:
    if "prompt_embedding" not in flags:
        return str(flags.get("prompt", ""))
    if "prompt" in flags:
        raise UsageError("--prompt and --prompt_embedding were both given; leave one out")
    return _input_file(flags, "prompt_embedding", "a prompt embedding")


def _direction(flags: Mapping[str, Any]) -> Direction:
    """Return what directs the video; its files are read, and clips opened. Raises InputError, UsageError."""
    names = [
        name for name in ("prompts", "pose_video", "pose_end", "continue_from") if name in flags
    ]
    if not names:
        return UNDIRECTED
    from lipcast.media.clip import Clip
    from lipcast.media.split import BLOCK_FRAMES

    if "prompts" in flags:
        _input_file(flags, "prompts", "a prompts")
    for name in ("pose_video", "continue_from"):
        if name in flags:
            Clip.of(flags[name])
    direction = Direction(**{name: flags[name] for name in names})
    direction.prompts_by_block(_prompt(flags), BLOCK_FRAMES)
    return direction


def _audio_file(flags: Mapping[str, Any]) -> Path | None:
    """Return the voice; None where a text is spoken in its place. Raises UsageError for both."""
    if "text" not in flags:
        return _input_file(flags, "audio", "an audio")
    if "audio" in flags:
        raise UsageError("--audio and --text were both given; leave one out")
    return None


def _first_voice(characters: Sequence[Character]) -> Path:
    voices = (character.audio for character in characters)
    first = next((voice for voice in voices if isinstance(voice, Path)), None)
    if first is None:
        raise UsageError("--character: none of them says anything; give at least one a voice")
    return first


def _spoken_file(flags: Mapping[str, Any]) -> Path:
    """Return the speech of --text, made unless an earlier command has made it."""
    from lipcast.speech.spoken import spoken_file
    from lipcast.speech.synthesis import find_tts

    engine = find_tts(
        flags.get("tts", "auto"), voice=flags.get("tts_voice"), model=flags.get("tts_model", "")
    )
    return spoken_file(flags["text"], engine)


def _input_file(flags: Mapping[str, Any], name: str, what: str) -> Path:
    if name not in flags:
        instead = ", or words to speak with --text" if name == "audio" else ""
        raise UsageError(f"--{name} is missing; give {what} file with --{name} FILE{instead}")
    path: Path = flags[name]
    if name == "audio" and "+" in path.name and not is_there(path):
        raise UsageError(
            f"--audio: several voices joined by '+' need a --character REGION for each, got {path}"
        )
    return checked_file(path, name, what)


def _signing(flags: Mapping[str, Any], output: Path) -> SigningKey | None:
    signing = signing_key(flags.get("sign"))
    if signing is not None:
        check_signed_target(output)
        signing.check()
    return signing


def _output_file(flags: Mapping[str, Any], options: GenerateOptions) -> tuple[Path, bool]:
    """Return the output, and whether its name is made from the time."""
    if "save_dir" in flags and "output" in flags:
        raise UsageError("--output and --save_dir were both given; leave one out")
    name = file_name(str(flags.get("prompt", "")), options.sample_steps)
    if "save_dir" in flags:
        folder: Path = flags["save_dir"]
        return folder / name, True
    return output_path(flags.get("output", "out"), name)


def file_name(prompt: str, num_steps: int | None = None) -> str:
    """Return time, steps and prompt, as the public scripts name their files."""
    now = datetime.now().strftime("%Y%m%d_%H%M%S")
    steps = f"_{num_steps}step" if num_steps else ""
    words = "".join(c if c.isalnum() else "_" for c in prompt)[:_MAX_NAME_WORDS]
    return f"{now}{steps}_{words}".rstrip("_") + _SUFFIX


def _check_output(output: Path, inputs: tuple[Path, ...]) -> None:
    """Find out before the work that the file can be written, without touching what is there."""
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise UsageError(f"--output: {output} is an input of this command; choose another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(output, error) from error
    check_target(output)
