"""A sweep survives whatever its cells do, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from lipcast.cli.main import main
from lipcast.cli.sweep import refusal
from lipcast.errors import InputError, UsageError
from lipcast.lab.matrix import PRESETS, matrix_of, read_matrix
from lipcast.lab.results import by_cell, read_results
from lipcast.lab.sampler import Nvml, Sampler
from lipcast.lab.sweep import Sweep, run_sweep
from programs import started

DOCUMENT = {
    "conditions": {"peak_rss_bytes": 100, "gpus": []},
    "rows": [{"frames_per_s": 5.0, "first_frame_s": 1.0, "block_s": 2.4, "parts": {"vae_s": 1.0}}],
    "predicted": {"bytes": 80},
}
NO_MEMORY = {
    "error": {"message": "memory ran out at block 3, step 1"}, "block": 3, "step": 1,
    "part": "transformer",
}  # fmt: skip
BODIES = {
    "good": f"print('loading'); print({json.dumps(DOCUMENT)!r})",
    "refused": 'print(\'{"error": {"message": "not in this version"}}\'); sys.exit(2)',
    "no memory": f"print({json.dumps(NO_MEMORY)!r}); sys.exit(5)",
    "crash": "raise ValueError('broken')",
    "segfault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "endless": "time.sleep(60)",
    "silent": "pass",
}
OUTCOMES = {
    "good": ("ok", ""),
    "refused": ("refused", "not in this version"),
    "no memory": ("out of memory", "block 3, step 1"),
    "crash": ("failed", "ValueError: broken"),
    "segfault": ("killed", "SIGSEGV"),
    "killed": ("killed", "memory runs out"),
    "endless": ("timed out", "no end after"),
    "silent": ("failed", "without a document"),
    "unknown": ("refused", "never started"),
}


def sweep_of(bodies: dict[str, str], *, repeats: int = 1, timeout_s: float = 120) -> Sweep:
    start = "import os, signal, sys, time\n"
    return Sweep(
        command=lambda cell: [sys.executable, "-c", start + bodies[str(cell["case"])]],
        refusal=lambda cell: "" if cell["case"] in bodies else "never started",
        shown_command=lambda cell: f"case {cell['case']}",
        repeats=repeats,
        timeout_s=timeout_s,
    )


def run(sweep: Sweep, cases: list[str], results: Path, *, resume: bool = False) -> list[dict]:
    return list(run_sweep(sweep, [{"case": case} for case in cases], results, resume=resume))


def test_every_outcome_is_recorded(tmp_path):
    results = tmp_path / "results.jsonl"
    records = []
    for case in OUTCOMES:
        sweep = sweep_of(BODIES, timeout_s=0.5 if case == "endless" else 120)
        records += run(sweep, [case], results)
    assert [record["cell"]["case"] for record in records] == list(OUTCOMES)
    for record in records:
        status, words = OUTCOMES[record["cell"]["case"]]
        assert record["status"] == status, record
        assert words in record["reason"]
    for read, record in zip(read_results([results]), records, strict=True):
        assert {name: read[name] for name in record} == record
    lost = next(record for record in records if record["cell"]["case"] == "no memory")
    assert (lost["block"], lost["step"], lost["part"]) == (3, 1, "transformer")
    cells = by_cell(records)
    assert cells[0].status == "ok" and cells[2].status.startswith(
        "out of memory at block 3, step 1"
    )
    assert cells[0].spread("frames_per_s").text() == "5.00"
    assert cells[0].spread("real_time").median == pytest.approx(5)
    assert cells[0].spread("peak_vram") is None


def test_resume_runs_what_is_missing(tmp_path):
    results = tmp_path / "results.jsonl"
    run(sweep_of(BODIES), ["good", "refused", "crash", "unknown"], results)
    with results.open("a") as file:
        file.write('{"kind": "bench", "cell": {"case": "torn"')
    mended = {**BODIES, "crash": BODIES["good"], "torn": BODIES["good"]}
    cases = ["good", "refused", "crash", "unknown", "torn"]
    again = run(sweep_of(mended, repeats=2), cases, results, resume=True)
    done = [(record["cell"]["case"], record["repeat"], record["status"]) for record in again]
    assert done == [
        ("good", 1, "ok"), ("crash", 0, "ok"), ("crash", 1, "ok"), ("torn", 0, "ok"),
        ("torn", 1, "ok"),
    ]  # fmt: skip
    assert run(sweep_of(mended, repeats=2), cases, results, resume=True) == []
    assert by_cell(read_results([results]))[2].status == "ok, 1 of 3 repeats lost"


@pytest.mark.slow
def test_an_ended_cell_leaves_no_children(tmp_path):
    note = tmp_path / "pid"
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    timeout_s = 2.0
    while not (note.exists() and note.read_text()):  # ended before it had started its child
        run(sweep_of({"parent": body}, timeout_s=timeout_s), ["parent"], tmp_path / "r.jsonl")
        timeout_s *= 2
    check_is_gone(int(note.read_text()))


def check_is_gone(pid: int) -> None:
    deadline = time.monotonic() + 120
    while _is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for yet does not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_sweep_that_is_ended_ends_its_cell(tmp_path, number):
    """The cell is in a session of its own, which no signal to the sweep reaches."""
    note, results = tmp_path / "pid", tmp_path / "results.jsonl"
    cell = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import sys\n"
        "from pathlib import Path\nfrom lipcast.cli.signals import interrupt_on_termination\n"
        "from lipcast.lab.sweep import Sweep, run_sweep\ninterrupt_on_termination()\n"
        f"sweep = Sweep(lambda _: [sys.executable, '-c', {cell!r}], lambda _: '', lambda _: '')\n"
        f"list(run_sweep(sweep, [{{'a': 1}}], Path({str(results)!r})))"
    )
    with started([sys.executable, "-c", program], stderr=subprocess.PIPE) as sweep:
        while sweep.poll() is None and not (note.exists() and note.read_text()):
            time.sleep(0.02)
        sweep.send_signal(number)
        said = sweep.communicate()[1].decode()
    assert sweep.returncode != 0 and "KeyboardInterrupt" in said
    check_is_gone(int(note.read_text()))
    assert not results.exists()


class _Cards:
    """NVML of a machine with two cards."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str):
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(used=10 * (card + 1)),
            "nvmlDeviceGetTotalEnergyConsumption": self._millijoules,
        }
        return answers[name]

    def _millijoules(self, _card: int) -> int:
        self.calls += 1
        return 500 * self.calls


def test_sampler_sees_memory_and_energy():
    with Sampler(os.getpid(), nvml=Nvml(_Cards()), period_s=0.01) as sampler:
        while len(sampler.samples.t_s) <= 2:
            time.sleep(0.01)
    seen = sampler.samples
    assert seen.gpu_peak_bytes == [10, 20]
    assert seen.energy_j == pytest.approx(2.0)  # 500 + 1000 mJ before, 1500 + 2000 mJ after
    assert seen.rss_peak_bytes > 10 * 2**20
    assert len(seen.t_s) == len(seen.rss_bytes) == len(seen.gpu_bytes) > 2


def test_the_peak_is_not_that_of_who_started_the_process():
    big = np.ones(50_000_000)  # 400 MB
    program = "from lipcast.lab.sampler import own_peak_rss_bytes; print(own_peak_rss_bytes())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert 5 * 2**20 < int(said) < big.nbytes / 2


def test_sampler_keeps_few_samples():
    with Sampler(os.getpid(), nvml=Nvml(_Cards()), period_s=0.0001) as sampler:
        time.sleep(0.6)
    assert len(sampler.samples.t_s) < 240


def test_without_a_gpu_the_reason_is_said():
    cards = _Cards()
    vars(cards)["nvmlInit"] = lambda: (_ for _ in ()).throw(cards.NVMLError("no driver"))
    assert "no driver" in Nvml(cards).reason
    assert Nvml(cards).used_bytes() == [] and Nvml(cards).energy_j() is None


def test_a_matrix_is_a_product(tmp_path):
    path = tmp_path / "matrix.toml"
    path.write_text("repeats = 3\n[fixed]\nmodel = 'tiny'\n[axes]\na = [1, 2]\nb = [true, false]\n")
    matrix = read_matrix(path)
    assert matrix.repeats == 3
    assert matrix.cells()[1] == {"model": "tiny", "a": 1, "b": False}
    assert len(matrix.cells()) == 4
    assert len(PRESETS["low-vram-study"].cells()) == 18


@pytest.mark.parametrize(
    "content",
    [{}, {"axes": {"a": 3}}, {"axes": {"a": []}}, {"axes": {}, "other": 1},
     {"axes": {"a": [1]}, "repeats": 0}],
)  # fmt: skip
def test_a_wrong_matrix_is_explained(content):
    with pytest.raises(UsageError, match="--matrix: "):
        matrix_of(content)


def test_a_broken_matrix_file_is_explained(tmp_path):
    (tmp_path / "matrix.json").write_text("{")
    for name in ("matrix.json", "none.toml"):
        with pytest.raises(InputError, match=name):
            read_matrix(tmp_path / name)


def test_what_cannot_be_asked_is_refused():
    assert "as soon as it is denoised" in refusal({"enable_online_decode": False})
    assert refusal({"enable_online_decode": True, "infer_frames": 32}) == ""
    assert "nonsense" in refusal({"nonsense": 1})


@pytest.mark.slow
def test_the_verb_sweeps(tmp_path, capsys):
    matrix = {
        "axes": {"sample_steps": [3, 0], "enable_online_decode": [True, False]},
        "fixed": {"size": "64*64", "infer_frames": 12, "device": "cpu", "precision": "fp32"},
        "repeats": 1, "num_blocks": 1, "warm_up_blocks": 1,
    }  # fmt: skip
    path, results = tmp_path / "matrix.json", tmp_path / "results.jsonl"
    path.write_text(json.dumps(matrix))
    arguments = ["bench", "--matrix", str(path), "--results", str(results), "--resume"]
    assert main(arguments) == 0
    records = read_results([results])
    assert [r["status"] for r in records] == ["ok", "refused", "refused", "refused"]
    assert "sample_steps: expected" in records[2]["reason"]
    assert "as soon as it is denoised" in records[1]["reason"]
    good = records[0]
    assert good["document"]["predicted"]["bytes"] > 10 * 2**20
    assert good["samples"]["rss_peak_bytes"] > 100 * 2**20
    assert good["command"].startswith("lipcast bench --schedule sequential --size")
    assert main(arguments) == 0
    assert len(read_results([results])) == 4
    assert "frames/s" in capsys.readouterr().out


def test_repeats_measure_the_flags_as_given(tmp_path, capsys, monkeypatch):
    """One cell, so many processes; what each said is median and spread in the table."""
    commands = []

    def run(command, timeout_s):
        commands.append(command)
        row = {**DOCUMENT["rows"][0], "frames_per_s": 4.0 + len(commands)}
        document = {**DOCUMENT, "rows": [row]}
        return {"status": "ok", "reason": "", "document": document}

    monkeypatch.setattr("lipcast.lab.sweep._run", run)
    results = tmp_path / "r.jsonl"
    flags = ["--sample_steps", "3", "--results", str(results)]
    assert main(["bench", "--repeats", "3", *flags]) == 0
    assert "6.00 (5.00-7.00)" in capsys.readouterr().out
    assert len(commands) == 3 and commands[0][-10:-1] == [
        "bench", "--schedule", "sequential", "--sample_steps", "3", "--num_blocks", "4",
        "--warm_up_blocks", "4",
    ]  # fmt: skip
    assert [record["cell"] for record in read_results([results])] == [{"sample_steps": 3}] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "other"], "low-vram-study"),
        (["--resume"], "--matrix, --preset or --repeats"),
        (["--preset", "low-vram-study", "--matrix", "m.toml"], "leave one out"),
        (["--preset", "low-vram-study", "--repeats", "0"], "at least 1"),
    ],
)
def test_wrong_flags_are_explained(arguments, words, capsys):
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err
