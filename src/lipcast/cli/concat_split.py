"""`lipcast concat` and `lipcast split-audio`: long videos in the published way, cut and joined.

Input: files. Output: files, and what was done as a line or as one JSON document.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer

from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.options import Positional, either_spelling, with_flags
from lipcast.cli.validate import RawFlags, parse_seconds
from lipcast.errors import InputError

_PARTS = Positional(
    "parts", "The videos in order, or a list.txt in FFmpeg's concat format.", many=True
)
_VOICE = Positional("voice", "The sound to cut: anything FFmpeg reads.")
_LISTS = frozenset({".txt", ".ffconcat"})

HLS = Flag(
    "hls", Group.FILES, Kind.SWITCH,
    "Also write NAME-hls beside the video: HTTP Live Streaming, for players in browsers.",
)  # fmt: skip
_TALK_FLAGS = (
    Flag("json", Group.TALK, Kind.SWITCH, "Print one JSON document of what was done."),
    Flag("quiet", Group.TALK, Kind.SWITCH, "Print errors only."),
    Flag("debug", Group.TALK, Kind.SWITCH, "Show the traceback of an error."),
)
CONCAT_FLAGS: tuple[Flag, ...] = (
    Flag("output", Group.FILES, Kind.TEXT, "The video to write.", default="out.mp4", also=("-o",)),
    Flag(
        "audio", Group.FILES, Kind.TEXT, "The whole voice, in place of the parts' own sound.",
        default="the parts' own, encoded a second time",
    ),
    HLS, *_TALK_FLAGS,
)  # fmt: skip
SPLIT_FLAGS: tuple[Flag, ...] = (
    Flag(
        "segment", Group.FILES, Kind.TEXT, "Wished length of a piece: 60s, 2min.", default="60s"
    ),
    Flag("output", Group.FILES, Kind.TEXT, "The folder to write to.", default=".", also=("-o",)),
    *_TALK_FLAGS,
)  # fmt: skip
PIECES_FLAGS = (*CONCAT_FLAGS, *SPLIT_FLAGS)


def concat(given: Mapping[str, RawFlags]) -> None:
    """Put videos one after the other, without encoding a picture again.

    lipcast concat part-0.mp4 part-1.mp4 -o out.mp4
    lipcast concat list.txt -o out.mp4 --audio voice.wav
    """
    from lipcast.media.concat import concat as join
    from lipcast.media.concat import read_list
    from lipcast.media.hls import check_hls_target, write_hls

    talk = Console.begin(given)
    paths: list[Path] = []
    for word in str(given["parts"]).splitlines():
        path = Path(word).expanduser()
        paths += read_list(path) if path.suffix in _LISTS else [path]
    output = Path(str(given.get("output", "out.mp4"))).expanduser()
    if given.get("hls"):
        check_hls_target(output)
    joined = join(paths, output, sound=_file(given, "audio"))
    playlist = write_hls(output) if given.get("hls") else None
    if talk.as_json:
        print_json({
            "status": "finished", "output": str(output.resolve()),
            "frames": joined.num_frames, "duration_s": joined.duration_s,
            "samples": joined.num_samples, "hls": playlist and str(playlist.resolve()),
            "parts": [{"path": str(p.path), "frames": p.num_frames} for p in joined.parts],
        })  # fmt: skip
    talk.note(f"{output}: {len(joined.parts)} parts, {joined.duration_s:.2f} s")


def split_audio(given: Mapping[str, RawFlags]) -> None:
    """Cut a voice into pieces at quiet places, each a whole number of blocks (0.48 s).

    lipcast split-audio voice.wav --segment 60s -o pieces
    """
    from lipcast.media.split import split_audio as split

    talk = Console.begin(given)
    source = Path(str(given["voice"])).expanduser()
    folder = Path(str(given.get("output", "."))).expanduser()
    segment_s = parse_seconds("segment", str(given.get("segment", "60s")))
    pieces = split(source, folder, segment_s=segment_s, name=source.stem)
    if talk.as_json:
        print_json({
            "status": "finished",
            "pieces": [
                {"path": str(p.path), "first_frame": p.first_frame, "frames": p.num_frames,
                 "samples": p.num_samples} for p in pieces
            ],
        })  # fmt: skip
    talk.note(f"{folder}: {len(pieces)} pieces of {source.name}")


def register(app: typer.Typer) -> None:
    """Add the verbs to an application."""
    context = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}
    for name, command in (
        ("concat", with_flags(CONCAT_FLAGS, positional=_PARTS)(concat)),
        ("split-audio", with_flags(SPLIT_FLAGS, positional=_VOICE)(split_audio)),
    ):
        app.command(name, context_settings=context)(command)


def _file(given: Mapping[str, RawFlags], name: str) -> Path | None:
    if name not in given:
        return None
    path = Path(str(given[name])).expanduser()
    if not path.is_file():
        raise InputError(f"--{name}: expected a file, found nothing there: {path}")
    return path
