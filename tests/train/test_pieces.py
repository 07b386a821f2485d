"""Training in pieces with deadlines, on a bare machine; what a second call and a quiet one do."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faces import DrawnFaces
from micro import micro

import lipcast_train.cli.main
from lipcast.errors import CheckpointError
from lipcast_train import pieces, presets, run
from lipcast_train.cli import all as all_command
from lipcast_train.data.cache import LatentCache
from lipcast_train.data.pool import ClipPool
from lipcast_train.data.windows import WindowShape, window_batches
from lipcast_train.networks.build import build_networks
from lipcast_train.phases import transformer
from lipcast_train.phases.transformer import RolloutObjective
from lipcast_train.pieces import Piece, run_piece
from lipcast_train.training import loop
from lipcast_train.training.devices import Devices, Share
from lipcast_train.training.loop import LoopSettings, Phase, Recipe, run_phase

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[2] / "scripts" / "train_on_gpu"
LARGEST = 1 << 20


class Clock:
    """A second passes whenever somebody looks."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def micro_batches(folder: Path):
    """Networks, and the windows that they are trained on."""
    networks = build_networks(micro().sizes, seed=1)
    cache = LatentCache(
        folder, ClipPool(DrawnFaces(2)), networks.vae, networks.speech,
        identity="a", device=CPU, max_bytes=1 << 30,
    )  # fmt: skip
    return networks, cache, window_batches(cache, WindowShape(6, 3), size=1, seed=0, device=CPU)


@pytest.mark.slow
def test_pieces_end_in_the_model_of_one_training(tmp_path, monkeypatch):
    """Each stops at its deadline, between two steps, and the next one goes on from its parts."""
    clock = SimpleNamespace(monotonic=Clock())
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(pieces, "time", clock)
    monkeypatch.setattr(pieces, "open_source", lambda *_: DrawnFaces(2))
    preset = micro(1)
    whole = run_piece(Piece(preset, None, tmp_path / "whole", 1e9, CPU))
    assert whole.is_finished
    state, steps = None, []
    while len(steps) < 3:
        out = tmp_path / f"piece{len(steps)}"
        result = run_piece(Piece(preset, state, out, 8, CPU, part_bytes=LARGEST))
        state = out
        steps.append({name: done.step for name, done in result.phases.items()})
        parts = sorted(out.glob("training.tar.*"))
        assert parts and all(part.stat().st_size <= LARGEST for part in parts)
    assert len(steps) == 3
    assert result.is_finished and result.phases == whole.phases
    for name, folder in (("a", tmp_path / "whole"), ("b", state)):
        pieces.unpack(folder, tmp_path / name)
    sums = [(tmp_path / name / "model" / "SHA256SUMS").read_text() for name in "ab"]
    assert sums[0] == sums[1]


def test_parts_that_are_missing_are_named(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "speech.safetensors").write_bytes(bytes(3000))
    pieces.pack(work, tmp_path / "out", part_bytes=1024)
    assert len(list((tmp_path / "out").iterdir())) > 3
    (tmp_path / "out" / "training.tar.000of010").unlink()
    with pytest.raises(CheckpointError, match="copy all of them"):
        pieces.unpack(tmp_path / "out", tmp_path / "again")


def test_fewer_parts_replace_more(tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    (work / "speech.safetensors").write_bytes(bytes(3000))
    pieces.pack(work, out, part_bytes=1024)
    pieces.pack(work, out, part_bytes=1 << 20)
    assert [path.name for path in out.iterdir()] == ["training.tar.000of001"]
    pieces.unpack(out, tmp_path / "again")
    assert (tmp_path / "again" / "speech.safetensors").read_bytes() == bytes(3000)


@pytest.mark.slow
def test_the_script_needs_no_library_that_a_bare_machine_lacks(tmp_path):
    """Its time is over before the first step: everything was imported, and it says to run it again."""
    missing = tmp_path / "missing"
    missing.mkdir()
    for name in ("av", "rich", "typer", "click", "psutil", "soxr", "PIL"):
        (missing / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}')\n")
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(missing)!r}); "
        f"sys.argv[1:] = ['--preset', 'smoke', '--max_time', '0', '--device', 'cpu', '--out', "
        f"{str(tmp_path / 'out')!r}]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == pieces.UNFINISHED, done.stderr
    assert "unfinished: run again" in done.stdout


@pytest.mark.slow
def test_a_second_call_exports_and_measures_nothing_and_a_quiet_one_prints_the_result_only(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setitem(presets.PRESETS, "smoke", micro(1))
    monkeypatch.setattr("lipcast_train.sources.open_source", lambda *_: DrawnFaces(2))
    command = ["all", "--preset", "smoke", "-o", str(tmp_path), "--device", "cpu", "--quiet"]
    assert lipcast_train.cli.main.main(command) == 0
    first = capfd.readouterr()
    assert first.err == ""
    assert first.out.startswith("speech: 1 steps, loss divided by") and "model: " in first.out

    def never(*_args, **_kwargs):
        raise AssertionError("everything is done")

    monkeypatch.setattr(run, "export", never)
    monkeypatch.setattr(all_command, "_measure", never)
    assert lipcast_train.cli.main.main([*command, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["status"] == "finished"


@pytest.mark.slow
def test_few_steps_prepare_a_window_once_and_reach_the_transformer_in_bf16(tmp_path, monkeypatch):
    """Weights that autocast keeps from the rollout, which has no gradients, are not used again."""
    networks, _, batches = micro_batches(tmp_path / "latents")
    torch.nn.init.normal_(networks.dit.head.head.weight, std=0.1)
    model = RolloutObjective(networks.dit, networks.text, ring_frames=6)
    model.requires_grad_(True)
    prepared, really = [], transformer.prepare_window

    def counted(*args, **kwargs):
        prepared.append(1)
        return really(*args, **kwargs)

    monkeypatch.setattr(transformer, "prepare_window", counted)
    batch = replace(batches(0, Share()), levels=(0.99,))
    weights = [block.ffn[0].weight for block in networks.dit.layers]
    before = [weight.detach().clone() for weight in weights]
    recipe = Recipe(1, 2, 1e-2, weight_decay=0.0)
    run_phase(
        Phase("few-steps", recipe, model, lambda *_: batch),
        Devices(CPU),
        LoopSettings(tmp_path, bf16=True),
    )
    assert len(prepared) == 1
    assert not any(map(torch.equal, before, weights))


def test_encoders_and_frames_go_when_every_clip_is_encoded(tmp_path):
    networks, cache, _ = micro_batches(tmp_path)
    kept = cache.clip(0), cache.clip(1)
    vae = weakref.ref(networks.vae)
    pool = weakref.ref(cache._origin[0])
    cache.drop_encoders()
    del networks
    gc.collect()
    assert vae() is None and pool() is None
    assert (cache.clip(0), cache.clip(1)) == kept
