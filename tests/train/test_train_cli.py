"""The verdict of `lipcast-train gates`, and what a wrong file is called."""

from __future__ import annotations

import json
from pathlib import Path

from lipcast_train.cli.main import main


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


def test_a_file_that_is_no_report_is_named(tmp_path, capsys):
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    assert main(["gates", str(wrong), str(wrong)]) == 3
    assert "is no report of `lipcast-train`" in capsys.readouterr().err


def test_a_folder_without_videos_is_refused(tmp_path, capsys):
    found = main(["all", "--data", str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert found == 3
    assert str(tmp_path) in capsys.readouterr().err
