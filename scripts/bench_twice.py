"""Measure a small matrix twice, and say whether the two runs agree within the spreads that they print.

    .venv/bin/python scripts/bench_twice.py [--matrix FILE] [--repeats 3] [--out out/bench-twice]

A few minutes on two cores; close other programs first. Prints a line for every figure of every cell, and,
last, one JSON document. Ends with status 1 where medians differ by more than the spread.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lipcast.cli.main import main as run_lipcast
from lipcast.lab.agreement import Row, compared
from lipcast.lab.results import CellResult, by_cell, read_results

ROOT = Path(__file__).parents[1]
SMALL = {
    "axes": {"infer_frames": [48, 24], "sample_steps": [4, 3]},
    "fixed": {"size": "128*128", "schedule": "sequential"},
    "num_blocks": 3, "warm_up_blocks": 4,
}  # fmt: skip
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrix", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench-twice")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    matrix = options.matrix or options.out / "matrix.json"
    if options.matrix is None:
        matrix.write_text(json.dumps(SMALL), "utf-8")
    runs = [measure(matrix, options.out / f"run-{i}.jsonl", options.repeats) for i in (1, 2)]
    rows = list(compared(*runs))
    print("\n".join(map(line, rows)))
    known = [row.agrees for row in rows if row.agrees is not None]
    print(json.dumps({"figures": len(known), "agree": sum(known), "rows": len(rows)}))
    sys.exit(not all(known))


def measure(matrix: Path, results: Path, repeats: int) -> list[CellResult]:
    results.unlink(missing_ok=True)
    flags = ["--matrix", str(matrix), "--results", str(results), "--repeats", str(repeats)]
    if run_lipcast(["bench", *flags]):
        sys.exit("the sweep could not be run")
    return by_cell(read_results([results]))


def line(row: Row) -> str:
    scale = MIB if row.figure == "peak_rss" else 1
    both = [spread.scaled(scale).text() for spread in (row.first, row.second)]
    says = {True: "agree", False: "DIFFER", None: "no spread"}[row.agrees]
    return f"{row.figure:<14}{both[0]:>24}{both[1]:>24}  {says:<10}{row.cell}"


if __name__ == "__main__":
    main()
