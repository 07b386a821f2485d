"""Make a whole talking video in memory and save it.

    .venv/bin/python examples/generate.py
    .venv/bin/python examples/generate.py me.png hello.wav --output talk.mp4 --model tiny

For a video of more than a few minutes use `stream_to_file.py`: `generate` keeps every frame in memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import lipcast

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a model, make one video, and say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", default=HERE / "portrait_0.png")
    parser.add_argument("audio", nargs="?", default=HERE / "speech_b_male.wav")
    parser.add_argument("--prompt", default="a cheerful smile, lively")
    parser.add_argument("--model", default="tiny", help="a name, or the folder of a checkpoint")
    parser.add_argument("--size", default="256*256", help="width*height, fitted to the portrait")
    parser.add_argument("--output", default="talk.mp4")
    args = parser.parse_args(arguments)

    with lipcast.load(args.model) as model:
        video = model.generate(
            image=args.image, audio=args.audio, prompt=args.prompt, size=args.size
        )
    video.save(args.output)

    # RGB frames [num_frames, height, width, 3] at 25 a second, and exactly their sound.
    num_frames, height, width, _ = video.frames.shape
    print(f"{args.output}: {num_frames} frames of {width}x{height}, {num_frames / 25:.2f} s")


if __name__ == "__main__":
    main()
