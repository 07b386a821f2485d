"""Write a video block by block while it is made, in memory that does not grow with its length.

    .venv/bin/python examples/stream_to_file.py me.png lecture.mp3 --output lecture.mp4

The file plays at every moment, also after Ctrl-C. A block is 12 frames, 0.48 s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import lipcast

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Stream one video to a file, and report how fast it is made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", default=HERE / "portrait_1.png")
    parser.add_argument("audio", nargs="?", default=HERE / "speech_d_female.wav")
    parser.add_argument("--prompt", default="calm")
    parser.add_argument("--model", default="tiny", help="a name, or the folder of a checkpoint")
    parser.add_argument("--size", default="256*256", help="width*height, fitted to the portrait")
    parser.add_argument("--output", default="talk.mp4")
    args = parser.parse_args(arguments)

    with (
        lipcast.load(args.model) as model,
        model.stream(
            image=args.image, audio=args.audio, prompt=args.prompt, size=args.size
        ) as session,
    ):
        made, start = 0, time.perf_counter()
        # `save_blocks` writes each block and passes it on: show it, send it, measure it here.
        for block in lipcast.save_blocks(session, args.output):
            made += len(block.frames)
            speed = made / 25 / (time.perf_counter() - start)
            print(f"block {block.index}: {made} of {session.num_frames} frames, {speed:.2f}x")


if __name__ == "__main__":
    main()
