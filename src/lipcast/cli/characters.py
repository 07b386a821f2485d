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
from lipcast.cli.types import FILE, TEXT, checked_file, is_there
from lipcast.errors import UsageError

if TYPE_CHECKING:
    from lipcast.media.characters import Character

CHARACTER = Option(
    "character",
    "One of 2 to 4 people in the picture, and the sound of its voice; once for each, in place of --audio. "
    "REGION: a box x,y,w,h in pixels of the portrait; face1, face2: faces from left to right (lipcast[lab]); "
    "or a picture that is white where the person is. Without a voice the person says nothing.",
    section=Section.DIRECTING, type=TEXT, metavar="REGION[:VOICE]", multiple=True,
)  # fmt: skip


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
            checked_file(path, "character", "a picture or a sound")
    return tuple(characters)


def files_of(character: Character) -> list[Path]:
    """Return the files that a character is read from: its mask, its voice."""
    return [path for path in (character.region, character.audio) if isinstance(path, Path)]


def in_folder(text: str, folder: Path) -> str:
    """Return a value of the option with the paths of a table, which count from its folder."""
    region, voice = _split(text, folder)
    place = region if _is_place(region) else str(folder / _path(region))
    return f"{place}:{folder / _path(voice)}" if voice else place


def as_job(characters: Sequence[Character]) -> list[list[str | None]]:
    """Return characters as a job keeps them: [region, voice], with absolute paths."""
    return [[_absolute(character.region), _absolute(character.audio)] for character in characters]


def _absolute(value: Any) -> str | None:
    return str(value.resolve()) if isinstance(value, Path) else value


def _parsed(text: str) -> Character:
    from lipcast.media.characters import Character

    region, voice = _split(text)
    if not region:
        raise UsageError(
            f"--character: expected REGION:VOICE such as 0,0,320,480:anna.wav, face1:anna.wav or "
            f"mask.png:anna.wav, got {text!r:.80}"
        )
    place = region if _is_place(region) else _path(region)
    return Character(place, _path(voice) if voice else None)


def _is_place(region: str) -> bool:
    from lipcast.media.characters import is_place

    return is_place(region)


def _split(text: str, folder: Path = Path()) -> tuple[str, str]:
    """Return region and voice; names of files may have colons, too."""
    place, _, voice = text.strip().partition(":")
    place = "".join(place.split())
    if _is_place(place):
        return place, voice
    if is_there(folder / _path(text)):
        return text, ""
    ends = [found.start() for found in re.finditer(":", text)]
    first = next((end for end in ends if is_there(folder / _path(text[:end]))), None)
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
