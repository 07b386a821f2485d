"""The verdict of `lipcast-train gates`, and what a wrong file is called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from faces import DrawnFaces

from lipcast_train.cli.main import main
from lipcast_train.long_video import drift_of
from lipcast_train.report import table_of


def report(folder: Path, name: str, **averages: float) -> str:
    path = folder / name
    path.write_text(json.dumps({"average": averages}))
    return str(path)


def test_gates_say_whether_weights_are_replaced(tmp_path, capsys):
    old = report(tmp_path, "old.json", lip_sync=0.8, still_psnr=30.0, sharpness=0.5)
    new = report(tmp_path, "new.json", lip_sync=0.9, still_psnr=30.1, sharpness=0.5)
    assert main(["gates", old, new]) == 0
    assert "better: replace the weights" in capsys.readouterr().out
    assert main(["gates", new, old, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict == {"is_better": False, "reasons": ["lip_sync: 0.900 before, 0.800 now"]}


def test_a_join_that_shows_more_is_worse(tmp_path, capsys):
    old = report(tmp_path, "old.json", lip_sync=0.8, join_48=1.2, colour_drift=4.0)
    new = report(tmp_path, "new.json", lip_sync=0.9, join_48=1.9, colour_drift=2.0)
    assert main(["gates", old, new, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict == {"is_better": False, "reasons": ["join_48: 1.200 before, 1.900 now"]}


def test_a_report_is_a_table_of_aims():
    averages = {"lip_sync": 0.95, "still_psnr": 33.0, "join_48": 1.9, "join_32": None}
    assert table_of({"average": averages}) == [
        "| gate | aim | figure | |",
        "| --- | --- | --- | --- |",
        "| lip sync (correlation) | ≥ 0.92 | 0.950 | reached |",
        "| still pixels (dB) |  | 33.000 |  |",
        "| join at a window of 48 (ratio) | ≤ 1.3 | 1.900 | missed |",
        "| join at a window of 32 (ratio) | ≤ 1.3 | not measured | missed |",
    ]


def test_a_video_too_short_to_drift_is_refused(tmp_path, capsys):
    assert main(["report", "tiny", "--long", "3s", "-o", str(tmp_path / "report.json")]) == 2
    assert "long: expected at least 4 s, got 3 s" in capsys.readouterr().err


def test_drift_is_seen_in_colours_picture_and_edges():
    clip = DrawnFaces(1, num_frames=75).clip(0).frames_THWC
    steady = drift_of(iter(clip))
    fading = [
        np.clip(f * (1 - t / 150) + 128 * t / 150, 0, 255).astype(np.uint8)
        for t, f in enumerate(clip)
    ]
    drifting = drift_of(iter(fading))
    assert steady["colour_drift"] < 2 < 10 < drifting["colour_drift"]
    assert steady["likeness"] > drifting["likeness"] + 0.01
    assert 0.9 < steady["sharpness_kept"] < 1.1
    assert drifting["sharpness_kept"] < 0.75


def test_a_file_that_is_no_report_is_named(tmp_path, capsys):
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    assert main(["gates", str(wrong), str(wrong)]) == 3
    assert "is no report of `lipcast-train`" in capsys.readouterr().err


def test_a_folder_without_videos_is_refused(tmp_path, capsys):
    found = main(["all", "--data", str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert found == 3
    assert str(tmp_path) in capsys.readouterr().err
