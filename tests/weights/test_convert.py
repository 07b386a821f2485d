"""Converting a checkpoint: what comes out, what it may cost, and what a kill may do to it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lipcast.config.models import DiTConfig
from lipcast.config.precision import StoredPrecision
from lipcast.errors import CheckpointError, OutputError
from lipcast.models.dit import DiT
from lipcast.weights.bundle import load_bundle, load_text_encoder
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into, without_memory
from lipcast.weights.lora import LoraSpec
from lipcast.weights.manifest import read_manifest, verify
from lipcast.weights.quant import quantised
from lipcast.weights.quant_linear import QuantLinear
from lipcast.weights.schemes import SCHEMES
from programs import started
from synthetic import SMALL, configs_of_size, write_synthetic

from .conftest import TINY

WORKER = Path(__file__).with_name("convert_worker.py")
SHARD_BYTES = 300_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    write_synthetic(directory, SMALL, speech=TINY / "wav2vec2-tiny")
    return directory


def hashes(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def request(
    source: Path, out: Path, precision: StoredPrecision = "fp8", **more: object
) -> ConvertRequest:
    return ConvertRequest(source, out, precision, shard_bytes=SHARD_BYTES, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "fp8", "int8", "int4", "nvfp4"])
def test_the_result_is_a_checkpoint_that_loads_mapped(
    source: Path, tmp_path: Path, precision: StoredPrecision
) -> None:
    out = tmp_path / "out"
    manifest = convert(request(source, out, precision, text_precision=precision))
    files = find_checkpoint(out)
    assert files.missing == ()
    assert manifest == read_manifest(out)
    assert set(manifest["files"]) == set(hashes(out)) - {"lipcast.json"}
    assert files.dit is not None
    with without_memory():
        dit = DiT(DiTConfig.from_json(json.loads((out / "config.json").read_text())))
    load_into(dit, open_tensors(files.dit, mapped=True), dtype=torch.bfloat16)
    replaced = [m for m in dit.modules() if isinstance(m, QuantLinear)]
    assert len(replaced) == (50 if precision in SCHEMES else 0)


def test_manifest_says_what_and_how(source: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.safetensors"
    save_file(
        {
            "blocks.0.ffn.0.lora_A.weight": torch.ones(2, 128),
            "blocks.0.ffn.0.lora_B.weight": torch.ones(256, 2),
        },
        adapter,
    )
    spec = LoraSpec(adapter, 0.8, 1.0)
    manifest = convert(request(source, tmp_path / "out", "int4", loras=(spec,)))
    recipe = manifest["recipe"]
    assert recipe["version"] == version("lipcast")
    assert recipe["loras"] == [{"file": "adapter.safetensors", "weight": 0.8, "alpha": 1.0}]
    known = {entry["file"]: entry["sha256"] for entry in recipe["sources"]}
    for path in [adapter, *source.glob("diffusion*")]:
        assert known[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    layers = [layer for entry in manifest["files"].values() for layer in entry.get("layers", ())]
    assert len(layers) == 50
    assert all(
        0.05 < layer["weight_error"] < 0.1 for layer in layers if "ffn.0" not in layer["layer"]
    )
    shard = open_tensors(next((tmp_path / "out").glob("diffusion*-00001-*")))
    assert json.loads(shard.metadata["lipcast_recipe"]) == recipe


def test_converted_files_hold_what_the_stream_holds(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(request(source, out, "int8"))
    stream = quantised(open_tensors(find_checkpoint(source).dit or Path()), "int8")
    written = open_tensors(find_checkpoint(out).dit or Path(), mapped=True)
    assert list(written.infos.values()) == list(stream.infos.values())
    for name, tensor in stream:
        assert torch.equal(written.read(name).view(-1), tensor.view(-1)), name


def test_a_second_run_finds_it_done(source: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    first = convert(request(source, out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    second = convert(request(source, out), progress=lambda what, *_: told.append(what))
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "writing" not in told


def test_an_out_with_something_else_in_it_is_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="no converted checkpoint"):
        convert(request(source, out))
    shutil.rmtree(out)
    convert(request(source, out, "fp8"))
    with pytest.raises(OutputError, match="in another way"):
        convert(request(source, out, "int8"))
    other = tmp_path / "out2.partial"
    other.mkdir()
    with pytest.raises(OutputError, match="in the way"):
        convert(request(source, tmp_path / "out2"))


def test_no_space_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"needs .* GB more, the disk has 0\.0 GB free"):
        convert(request(source, tmp_path / "out"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_converted_checkpoint_is_not_converted_again(source: Path, tmp_path: Path) -> None:
    convert(request(source, tmp_path / "out"))
    with pytest.raises(CheckpointError, match="quantised already"):
        convert(request(tmp_path / "out", tmp_path / "again", "int4"))


def test_verify_names_changed_and_missing_files(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(request(source, out))
    verify(out)
    shards = sorted(out.glob("diffusion*.safetensors"))
    flipped = bytearray(shards[0].read_bytes())
    flipped[-1] ^= 1
    shards[0].write_bytes(flipped)
    shards[1].unlink()
    with pytest.raises(CheckpointError) as caught:
        verify(out)
    assert shards[0].name in str(caught.value)
    assert shards[1].name in str(caught.value)
    assert shards[2].name not in str(caught.value)


def test_shards_of_two_conversions_do_not_mix(source: Path, tmp_path: Path) -> None:
    for precision in ("bf16", "fp16"):
        convert(request(source, tmp_path / precision, precision))  # type: ignore[arg-type]
    name = sorted((tmp_path / "bf16").glob("diffusion*.safetensors"))[1].name
    shutil.copy(tmp_path / "fp16" / name, tmp_path / "bf16" / name)
    with pytest.raises(CheckpointError, match="another conversion"):
        open_tensors(find_checkpoint(tmp_path / "bf16").dit or Path())


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}'])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "lipcast.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"lipcast\.json"):
        read_manifest(tmp_path)


def test_bundle_loads_a_converted_directory(source: Path, tmp_path: Path) -> None:
    convert(request(source, tmp_path / "out", "fp8"))
    bundle = load_bundle(tmp_path / "out", device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(bundle.dit.blocks[0].ffn[0], QuantLinear)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed conversion to int4."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(request(source, out, "int4"))
    return out


def test_a_converted_text_encoder_says_nearly_the_same(source: Path, tmp_path: Path) -> None:
    exact = load_text_encoder(find_checkpoint(source)).encode("a calm man")
    convert(request(source, tmp_path / "out", "bf16", text_precision="int8"))
    files = find_checkpoint(tmp_path / "out")
    assert files.text is not None
    assert files.text.name == "models_t5_umt5-enc-int8.safetensors.index.json"
    close = load_text_encoder(files).encode("a calm man")
    assert 0 < float((close - exact).norm() / exact.norm()) < 0.03


class StopError(Exception):
    """Stands for a crash inside a conversion."""


@pytest.mark.parametrize("after", [1, 7, 40, 200])
def test_a_crash_anywhere_is_continued_to_the_same_bytes(
    source: Path, whole: Path, tmp_path: Path, after: int
) -> None:
    broken = tmp_path / "broken"
    calls = 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise StopError

    with pytest.raises(StopError):
        convert(request(source, broken, "int4"), progress=stop)
    assert not broken.exists()
    convert(request(source, broken, "int4"))
    assert hashes(broken) == hashes(whole)
    assert not (tmp_path / "broken.partial").exists()


def test_finished_shards_are_kept_and_damaged_ones_are_not(
    source: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def stop(what: str, done: int, total: int) -> None:
        if what == "writing" and done > total * 0.8:
            raise StopError

    with pytest.raises(StopError):
        convert(request(source, out, "int4"), progress=stop)
    shards = sorted((tmp_path / "out.partial").glob("*.safetensors"))
    assert len(shards) >= 3
    shards[0].write_bytes(shards[0].read_bytes()[:-5])
    kept = shards[1].stat().st_ino
    convert(request(source, out, "int4"))
    assert (out / shards[1].name).stat().st_ino == kept
    assert hashes(out) == hashes(whole)


def test_another_recipe_starts_anew(source: Path, whole: Path, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "writing" and done > total / 2:
            raise StopError

    with pytest.raises(StopError):
        convert(request(source, tmp_path / "out", "int8"), progress=stop)
    convert(request(source, tmp_path / "out", "int4"))
    assert hashes(tmp_path / "out") == hashes(whole)


def worker_of(*arguments: object) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    # Freed memory goes back at once, or the allocator's habits would be measured.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    return started(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_kill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    """SIGKILL, several times, then one whole run: the bytes of an undisturbed conversion."""
    source, whole, out = (tmp_path / name for name in ("source", "whole", "out"))
    write_synthetic(source, configs_of_size(20_000_000, dim=256), speech=TINY / "wav2vec2-tiny")
    torch.set_num_threads(1)
    convert(ConvertRequest(source, whole, "int4", shard_bytes=2_000_000))
    chance = random.Random(0)
    for _ in range(4):
        with worker_of(source, out, "int4", 2_000_000) as worker:
            while worker.poll() is None and not any(tmp_path.glob("out.partial/*.safetensors*")):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.3))
    convert(ConvertRequest(source, out, "int4", shard_bytes=2_000_000))
    assert hashes(out) == hashes(whole)


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose transformer has 120 MB, the largest tensor of it 13 MB."""
    directory = tmp_path_factory.mktemp("middling")
    write_synthetic(directory, configs_of_size(120_000_000), speech=TINY / "wav2vec2-tiny")
    return directory


def growth_bytes(source: Path, out: Path | str) -> int:
    """How much the resident memory of a process grows that converts or loads in int4."""
    with worker_of(source, out, "int4", 64_000_000) as worker:
        output, _ = worker.communicate()
    assert worker.returncode == 0
    return int(json.loads(output)["growth_bytes"])


def sizes(source: Path) -> tuple[int, int]:
    """Bytes of the largest tensor as stored, and of the whole transformer in int4."""
    tensors = open_tensors(find_checkpoint(source).dit or source)
    largest = max(info.num_bytes for info in tensors.infos.values())
    return largest, quantised(tensors, "int4").num_bytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_converting_holds_a_few_tensors(middling: Path, tmp_path: Path) -> None:
    largest_bytes, _ = sizes(middling)
    assert growth_bytes(middling, tmp_path / "out") < 3 * largest_bytes + 16_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_the_result_and_a_few_tensors(middling: Path) -> None:
    largest_bytes, result_bytes = sizes(middling)
    growth = growth_bytes(middling, "-")
    assert result_bytes < growth < result_bytes + 3 * largest_bytes + 8_000_000
