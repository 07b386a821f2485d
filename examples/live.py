"""Make frames while somebody speaks: sound is pushed as it comes, blocks are taken as they are made.

    .venv/bin/python examples/live.py
    .venv/bin/python examples/live.py me.png --audio hello.wav --pace 1

A 16-bit mono WAV file plays the microphone here, in pieces of 100 ms; `--pace 1` plays it at the speed
of speech. A real one calls `live.push` from its own thread.
"""

from __future__ import annotations

import argparse
import threading
import time
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lipcast

HERE = Path(__file__).parent
PIECE_S = 0.1


def microphone(file: wave.Wave_read, *, pace: float) -> Iterator[NDArray[np.int16]]:
    """Yield a WAV file in pieces, at `pace` times the speed of speech; 0: as fast as they are taken."""
    while data := file.readframes(round(file.getframerate() * PIECE_S)):
        yield np.frombuffer(data, np.int16)
        if pace:
            time.sleep(PIECE_S / pace)


def speak(live: lipcast.PushSession, file: wave.Wave_read, pace: float) -> None:
    """Push what the microphone hears; then say that nothing more comes."""
    for piece in microphone(file, pace=pace):
        live.push(piece)
    live.finish()


def main(arguments: Sequence[str] | None = None) -> None:
    """Speak in one thread, and write the frames in another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", default=HERE / "portrait_2.png")
    parser.add_argument("--audio", default=HERE / "speech_b_male.wav", help="16-bit mono WAV")
    parser.add_argument("--model", default="tiny", help="a name, or the folder of a checkpoint")
    parser.add_argument(
        "--pace", type=float, default=0, help="1: the speed of speech; 0: no waiting"
    )
    parser.add_argument("--size", default="256*256", help="width*height, fitted to the portrait")
    parser.add_argument("--output", default="live.mp4")
    args = parser.parse_args(arguments)

    with (
        wave.open(str(args.audio), "rb") as file,
        lipcast.load(args.model) as model,
        model.session(image=args.image, size=args.size, sample_rate=file.getframerate()) as live,
    ):
        speaker = threading.Thread(target=speak, args=(live, file, args.pace), daemon=True)
        speaker.start()
        # Iterating waits for sound, and ends after `finish`.
        for block in lipcast.save_blocks(live, args.output):
            print(f"block {block.index}: {len(block.frames)} frames")
        speaker.join()


if __name__ == "__main__":
    main()
