#!/usr/bin/env python3
"""Make speech for training with every voice that is installed; files that are there already are kept."""

import argparse
from pathlib import Path

from lipcast_train.data.speech import make_speech


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="where the WAV files go, a folder for each speaker"
    )
    made = make_speech(parser.parse_args().folder)
    print(f"{made.num_files} files of {made.num_speakers} speakers, {made.seconds / 60:.1f} min")


if __name__ == "__main__":
    main()
