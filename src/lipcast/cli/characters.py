"""`--character REGION:VOICE`: who is in the picture, and what each of them says.

Input: the values of the option, and --audio with the voices of all of them joined by '+'. Output:
`Character`s whose files are there. Raises UsageError, InputError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.cli.command import Option, Section
from lipcast.cli.types import FILE, TEXT
from lipcast.errors import InputError, UsageError

if TYPE_CHECKING:
    from lipcast.media.characters import Character

CHARACTER = Option(
    "character",
    "One of 2 to 4 people in the picture, and the sound of its voice; once for each, in place of --audio. "
    "REGION: a box x,y,w,h in pixels of the portrait; face1, face2: faces from left to right (lipcast[lab]); "
    "or a picture that is white where the person is. Without a voice the person says nothing.",
    section=Section.DIRECTING, type=TEXT, metavar="REGION[:VOICE]", multiple=True,
)  # fmt: skip
_PLACE = re.compile(r"((?:-?\d+\s*,\s*){3}-?\d+|face[1-9]\d*)(?::(.*))?", re.DOTALL)


def read_characters(flags: Mapping[str, Any]) -> tuple[Character, ...]:
    """Return the characters, in the order of the options; none where --character is not given."""
    given: Sequence[str] = flags.get("character", ())
    if not given:
        return ()
    from lipcast.media.characters import check_number

    if "text" in flags:
        raise UsageError(
            "--character and --text were both given, and a text is spoken by one person; give each character "
            "a sound"
        )
    check_number(len(given))
    characters = [_parsed(text) for text in given]
    if "audio" in flags:
        characters = _with_voices(characters, flags["audio"])
    for character in characters:
        for path in files_of(character):
            _check_file(path)
    return tuple(characters)


def files_of(character: Character) -> list[Path]:
    """Return the files that a character is read from: its mask, its voice."""
    return [path for path in (character.region, character.audio) if isinstance(path, Path)]


def as_job(characters: Sequence[Character]) -> list[list[str | None]]:
    """Return characters as a job keeps them: [region, voice], with absolute paths."""
    return [[_absolute(character.region), _absolute(character.audio)] for character in characters]


def _absolute(value: Any) -> str | None:
    return str(value.resolve()) if isinstance(value, Path) else value


def _parsed(text: str) -> Character:
    from lipcast.media.characters import Character

    found = _PLACE.fullmatch(text.strip())
    if found is not None:
        place, voice = found[1], found[2]
        return Character(place.replace(" ", ""), _path(voice) if voice else None)
    mask, voice = _split(text)
    if not mask:
        raise UsageError(
            f"--character: expected REGION:VOICE such as 0,0,320,480:anna.wav, face1:anna.wav or "
            f"mask.png:anna.wav, got {text!r:.80}"
        )
    return Character(_path(mask), _path(voice) if voice else None)


def _split(text: str) -> tuple[str, str]:
    """Return mask and voice; names of files may have colons, too."""
    if _path(text).is_file():
        return text, ""
    ends = [found.start() for found in re.finditer(":", text)]
    first = next((end for end in ends if _path(text[:end]).is_file()), None)
    end = first if first is not None else (ends[-1] if ends else len(text))
    return text[:end], text[end + 1 :]


def _path(text: str) -> Path:
    path: Path = FILE.convert(text, None, None)
    return path


def _with_voices(characters: Sequence[Character], audio: Path) -> list[Character]:
    """Give every character its voice of those in --audio, which are joined by '+'."""
    if any(character.audio is not None for character in characters):
        raise UsageError(
            "--character and --audio both give voices; write REGION:VOICE for each character and leave "
            "--audio out"
        )
    voices = str(audio).split("+")
    if len(voices) != len(characters):
        raise UsageError(
            f"--audio has {len(voices)} voices and there are {len(characters)} regions; join one voice for "
            "each --character by '+', in the same order"
        )
    return [
        replace(character, audio=_path(voice))
        for character, voice in zip(characters, voices, strict=True)
    ]


def _check_file(path: Path) -> None:
    try:
        is_file = path.is_file()
    except OSError as error:
        raise InputError(f"--character: {path} cannot be read ({error.strerror})") from error
    if not is_file:
        raise InputError(f"--character: {path} does not exist. Check the path.")
