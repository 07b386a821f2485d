"""`lipcast concat` and `lipcast split-audio`: join videos, and cut audio for the segments of a long one.

Input: files. Output: files, and what was done as a line or as one JSON document.
"""

from __future__ import annotations

from pathlib import Path

import click

from lipcast.cli.command import Option, Section, command, switch
from lipcast.cli.console import Console, print_json
from lipcast.cli.options import JSON_QUIET_DEBUG
from lipcast.cli.request import file_name
from lipcast.cli.types import FILE, FOLDER, OUTPUT, SECONDS
from lipcast.errors import InputError

_LISTS = frozenset({".txt", ".ffconcat"})

HLS = switch(
    "hls", "Also write an HTTP Live Streaming playlist for browsers, in NAME-hls beside the video.",
    section=Section.FILES,
)  # fmt: skip


@command(
    "concat",
    (
        click.Argument(
            ["parts"], nargs=-1, required=True, type=FILE,
            help="Videos in order, or a list.txt in FFmpeg's concat format.",
        ),
        Option(
            "output", "Video file to write.",
            section=Section.FILES, also=("-o",), type=OUTPUT, default="out.mp4", show_default=True,
        ),
        Option(
            "audio", "Audio of the whole video, in place of the parts' own.",
            section=Section.FILES, type=FILE, show_default="the parts' own, encoded again",
        ),
        HLS,
        *JSON_QUIET_DEBUG,
    ),
    when_stopped="nothing was written",
    examples=(
        "lipcast concat part-0.mp4 part-1.mp4 -o out.mp4",
        "lipcast concat list.txt -o out.mp4 --audio voice.wav",
    ),
)  # fmt: skip
def concat(
    console: Console, *, parts: tuple[Path, ...], output: str, audio: Path | None, hls: bool
) -> None:
    """Join videos without encoding the pictures again."""
    from lipcast.media.concat import concat as join
    from lipcast.media.concat import read_list
    from lipcast.media.hls import check_hls_target, write_hls
    from lipcast.media.target import check_target, claimed, output_path

    if audio is not None and not audio.is_file():
        raise InputError(f"--audio: {audio} does not exist. Check the path.")
    paths: list[Path] = []
    for path in parts:
        paths += read_list(path) if path.suffix.lower() in _LISTS else [path]
    given, is_automatic = output_path(output, file_name("concat"))
    if hls:
        check_hls_target(given)
    check_target(given)
    with claimed(given, automatic=is_automatic) as video:
        joined = join(paths, video, sound=audio)
        playlist = write_hls(video) if hls else None
    if console.as_json:
        print_json({
            "status": "finished", "output": str(video.resolve()),
            "frames": joined.num_frames, "duration_s": joined.duration_s,
            "samples": joined.num_samples, "hls": playlist and str(playlist.resolve()),
            "parts": [{"path": str(p.path), "frames": p.num_frames} for p in joined.parts],
        })  # fmt: skip
    console.log(f"{video}: {len(joined.parts)} parts, {joined.duration_s:.2f} s")


@command(
    "split-audio",
    (
        click.Argument(["voice"], type=FILE, help="Audio to cut: anything that FFmpeg reads."),
        Option(
            "segment", "Desired length of a piece, such as 60s or 2min.",
            section=Section.FILES, type=SECONDS, default="60s", show_default=True,
        ),
        Option(
            "output", "Folder to write to.",
            section=Section.FILES, also=("-o",), type=FOLDER, default=".", show_default=True,
        ),
        *JSON_QUIET_DEBUG,
    ),
    examples=("lipcast split-audio voice.wav --segment 60s -o pieces",),
)  # fmt: skip
def split_audio(console: Console, *, voice: Path, segment: float, output: Path) -> None:
    """Cut audio into pieces at quiet places.

    Each piece is a whole number of blocks (0.48 s).
    """
    from lipcast.media.split import split_audio as split

    pieces = split(voice, output, segment_s=segment, name=voice.stem)
    if console.as_json:
        print_json({
            "status": "finished",
            "pieces": [
                {"path": str(p.path), "first_frame": p.first_frame, "frames": p.num_frames,
                 "samples": p.num_samples} for p in pieces
            ],
        })  # fmt: skip
    console.log(f"{output}: {len(pieces)} pieces of {voice.name}")
