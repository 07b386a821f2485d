"""Check what a wheel contains: check_wheel.py WHEEL

The model, the page of reports and the marker of type annotations are there; tests and data of the
repository are not.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


def expected_files() -> set[str]:
    """Return the files of the packages as the source tree has them."""
    files = (path for path in SOURCE.rglob("*") if path.is_file())
    return {
        path.relative_to(SOURCE).as_posix() for path in files if "__pycache__" not in path.parts
    }


def main(wheel: str) -> None:
    """Compare a wheel with the source tree; raises SystemExit where they differ."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = expected_files()
    assert {"lipcast/py.typed", "lipcast/assets/tiny/config.json"} <= expected
    if found != expected:
        raise SystemExit(
            f"{wheel}: missing {sorted(expected - found)}, unexpected {sorted(found - expected)}"
        )
    print(f"{Path(wheel).name}: {len(found)} files")


if __name__ == "__main__":
    main(*sys.argv[1:])
