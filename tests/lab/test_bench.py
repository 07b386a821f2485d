"""The benchmark measures what it says: parts add up, schedules take turns, one JSON document."""

from __future__ import annotations

import json

import pytest

import lipcast.api
from lipcast.cli.main import main
from lipcast.engine.executor import LaneExecutor
from lipcast.lab.bench import PARTS, OutOfMemoryError, bench

FEW = ("--num_blocks", "1", "--warm_up_blocks", "1")


def test_rows_add_up(quick):
    rows = bench(quick, num_blocks=2, warm_up_blocks=1, size="64*64", infer_frames=12)
    assert [row.schedule for row in rows] == ["sequential", "wavefront"]
    for row in rows:
        assert set(row.parts) == set(PARTS)
        assert row.num_blocks == 2
        assert row.block_min_s <= row.block_s <= row.block_max_s
        assert row.frames_per_s == pytest.approx(12 / row.block_s)
        assert row.first_frame_s > 0
        assert row.cpu_s > 0


def test_last_line_is_one_document(quick, monkeypatch, capsys):
    monkeypatch.setattr("lipcast.api.load", lambda *_, **__: quick)
    assert main(["bench", "--size", "64*64", "--infer_frames", "12", "--device", "cpu", *FEW]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert {"conditions", "options", "rows"} <= set(document)
    assert "wavefront" in err


@pytest.mark.slow
def test_a_bounded_memory_is_what_is_measured(monkeypatch, capsys):
    """The flags of memory reach the model, and its plan decides: one schedule at a time."""
    asked = {}
    load = lipcast.api.load

    def watched(name, **how):
        asked.update(how)
        return load(name, **how)

    monkeypatch.setattr("lipcast.api.load", watched)
    small = ("--size", "64*64", "--infer_frames", "12", "--device", "cpu", "--precision", "fp32")
    assert main(["bench", *small, *FEW, "--vram", "300MB", "--offload_model", "True"]) == 0
    out, _ = capsys.readouterr()
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["schedule"] for row in rows] == ["sequential"]
    memory = asked["memory_options"]
    assert (memory.vram, memory.offload_model) == ("300MB", True)


def test_the_place_where_memory_ran_out_is_said(quick, monkeypatch):
    run = LaneExecutor.run

    def short_of_memory(self, tick):
        if (tick[0].block, tick[0].step) == (2, 1):
            raise MemoryError("cannot allocate 3 GiB")
        return run(self, tick)

    monkeypatch.setattr(LaneExecutor, "run", short_of_memory)
    with pytest.raises(OutOfMemoryError, match="block 2, step 1") as caught:
        bench(quick, schedules=("sequential",), num_blocks=2, warm_up_blocks=1, size="64*64")
    document = caught.value.document
    assert (document["block"], document["step"], document["part"]) == (2, 1, "transformer")
    assert document["error"]["exit_code"] == 5
