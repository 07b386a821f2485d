"""Pulling models: what is asked of the hub, what is refused before, what an interruption leaves."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fake_hub import ADAPTER, FILES, NAME, UNWANTED, WAN, FakeHub
from lipcast.errors import CheckpointError, OutputError, UsageError
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.hub import RECORD, list_models, model_status, pull, verify_pulled
from lipcast.weights.hub_library import HubLibrary


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "models" / NAME


def test_the_whole_model_arrives_and_nothing_else(dest: Path) -> None:
    assert pull(NAME, dest=dest, hub=FakeHub()) == dest
    files = find_checkpoint(dest)
    assert files.missing == ()
    assert files.adapter == dest / "liveavatar.safetensors"
    names = {path.name for path in dest.rglob("*")}
    assert not names & {Path(name).name for name in UNWANTED}
    assert model_status(dest, NAME).complete


def test_a_speech_encoder_that_is_only_a_pickle_is_taken(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FILES[WAN], "wav2vec2-large-xlsr-53-english/model.safetensors")
    pull(NAME, dest=dest, hub=FakeHub())
    assert (dest / "wav2vec2-large-xlsr-53-english" / "pytorch_model.bin").is_file()


def test_the_first_pull_pins_the_commit(dest: Path) -> None:
    pull(NAME, dest=dest, hub=FakeHub(head="aaa"))
    (dest / "config.json").unlink()
    later = FakeHub(head="bbb")
    pull(NAME, dest=dest, hub=later)
    assert {call["revision"] for call in later.calls} == {"aaa"}
    chosen = FakeHub(head="bbb")
    pull(NAME, dest=dest, revisions={WAN: "v2"}, hub=chosen)
    assert {c["revision"] for c in chosen.calls if c["repo"] == WAN} == {"v2"}
    record = json.loads((dest / RECORD).read_text())
    assert [entry["revision"] for entry in record["repositories"]] == ["v2", "aaa"]


def test_disk_space_is_checked_before_and_by_file(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=4000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    fake = FakeHub()
    with pytest.raises(OutputError) as caught:
        pull(NAME, dest=dest, hub=fake)
    text = str(caught.value)
    assert "0.00 GB are free" in text
    assert "models_t5_umt5-xxl-enc-bf16.pth" in text
    assert all(call["dry_run"] for call in fake.calls)
    assert not dest.exists()


def test_what_is_here_needs_no_space(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(NAME, dest=dest, hub=FakeHub())
    (dest / "Wan2.1_VAE.pth").unlink()
    for free, fits in ((399, False), (400, True)):
        usage = shutil.disk_usage("/")._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            pull(NAME, dest=dest, hub=FakeHub())
        else:
            with pytest.raises(OutputError, match=r"Wan2\.1_VAE\.pth"):
                pull(NAME, dest=dest, hub=FakeHub())


def test_leftovers_of_killed_downloads_are_removed(dest: Path) -> None:
    folder = dest / ".cache" / "huggingface" / "download" / "google"
    folder.mkdir(parents=True)
    names = {"old": "a.77.0badcafe.incomplete", "growing": "b.77.0badcafe.incomplete",
             "resumable": f"a.{'7' * 64}.incomplete", "lock": "a.lock"}  # fmt: skip
    for name in names.values():
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    os.utime(folder / names["growing"])
    pull(NAME, dest=dest, hub=FakeHub())
    assert {path.name for path in folder.iterdir()} == set(names.values()) - {names["old"]}


def test_an_interrupted_pull_is_incomplete_and_goes_on(dest: Path) -> None:
    fake = FakeHub(fail=ConnectionResetError("peer went away"), files_before_failure=4)
    with pytest.raises(CheckpointError, match=r"ConnectionResetError.*same command again"):
        pull(NAME, dest=dest, hub=fake)
    status = model_status(dest, NAME)
    assert not status.complete
    assert "liveavatar.safetensors" in status.missing
    assert "config.json" not in status.missing
    pull(NAME, dest=dest, hub=FakeHub())
    assert model_status(dest, NAME).complete


def test_a_file_cut_short_is_missing(dest: Path) -> None:
    pull(NAME, dest=dest, hub=FakeHub())
    (dest / "Wan2.1_VAE.pth").write_bytes(bytes(399))
    assert model_status(dest, NAME).missing == ("Wan2.1_VAE.pth",)
    with pytest.raises(CheckpointError, match=r"(?s)cut short:\n  Wan2\.1_VAE\.pth\n.*network"):
        pull(NAME, dest=dest, offline=True, hub=FakeHub(fail=AssertionError()))


def test_offline_uses_what_is_complete(dest: Path) -> None:
    pull(NAME, dest=dest, hub=FakeHub())
    assert pull(NAME, dest=dest, offline=True) == dest


def test_offline_without_anything_lists_what_is_missing(dest: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)Missing.*config\.json"):
        pull(NAME, dest=dest, offline=True)


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), OutputError, "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), OutputError, "cannot be written"),
        (OSError("401 Client Error: gated repo\nmore"), CheckpointError, "HF_TOKEN"),
        (ValueError("bad gateway"), CheckpointError, "ValueError: bad gateway"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), CheckpointError, "TimeoutError"),
    ],
)
def test_failures_have_a_cause(
    dest: Path, failure: Exception, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        pull(NAME, dest=dest, hub=FakeHub(fail=failure))
    assert "\nmore" not in str(caught.value)


def test_a_revision_without_the_files(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, ADAPTER, {"README.md": 5})
    with pytest.raises(CheckpointError, match=r"Live-Avatar: has none of the files"):
        pull(NAME, dest=dest, hub=FakeHub())


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="expected one of live-avatar-14b, got 'sora'"):
        pull("sora")


def test_a_damaged_record(dest: Path) -> None:
    dest.mkdir(parents=True)
    (dest / RECORD).write_text('{"repositories": [{"repo": 1}]}')
    with pytest.raises(CheckpointError, match="pull again"):
        model_status(dest, NAME)


def test_list_names_everything_here_and_everything_to_pull(tmp_path: Path) -> None:
    pull(NAME, dest=tmp_path / NAME, hub=FakeHub())
    converted, foreign = tmp_path / "avatar-fp8", tmp_path / "mine"
    for directory in (converted, foreign):
        directory.mkdir()
        (directory / "config.json").write_text("{}")
    entry = {"bytes": 2, "sha256": ""}
    manifest = {
        "format": 1,
        "recipe": {},
        "files": {"config.json": entry, "gone.safetensors": entry},
    }
    (converted / "lipcast.json").write_text(json.dumps(manifest))
    found = {status.name: status for status in list_models(tmp_path)}
    assert set(found) == {NAME, "avatar-fp8", "mine"}
    assert found[NAME].complete
    assert found[NAME].num_bytes > sum(FILES[WAN].values()) - 500
    assert found["avatar-fp8"].missing == ("gone.safetensors",)
    assert any("Wan2.1_VAE" in part for part in found["mine"].missing)


def test_list_of_an_empty_place(tmp_path: Path) -> None:
    (status,) = list_models(tmp_path / "nowhere")
    assert (status.name, status.complete, status.num_bytes) == (NAME, False, 0)


def test_the_default_place_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPCAST_HOME", str(tmp_path))
    assert pull(NAME, hub=FakeHub()) == tmp_path / "models" / NAME
    assert list_models()[0].complete


def test_a_file_of_the_right_size_and_other_bytes(dest: Path) -> None:
    pull(NAME, dest=dest, hub=FakeHub())
    assert verify_pulled(dest)
    swapped = "diffusion_pytorch_model-00002-of-00004.safetensors"
    (dest / swapped).write_bytes(bytes(1001) + b"x")
    assert model_status(dest, NAME).complete
    with pytest.raises(CheckpointError, match=rf"(?s)not the bytes.*{swapped}\nRemove these files"):
        verify_pulled(dest)


def test_a_mirror_without_hashes_delivers_all_the_same(
    dest: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("404\nmore")

    fake = FakeHub()
    monkeypatch.setattr(fake, "hashes", refuse)
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        pull(NAME, dest=dest, hub=fake)
    assert "hashes are not known (404); sizes are checked only" in caplog.text
    assert not verify_pulled(dest)


def test_the_library_tells_hashes_of_large_files(monkeypatch: pytest.MonkeyPatch) -> None:
    large = SimpleNamespace(path="a.pth", lfs=SimpleNamespace(sha256="abc"))
    small = SimpleNamespace(path="config.json", lfs=None)
    told = SimpleNamespace(get_paths_info=lambda *_args, **_how: [large, small])
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: told)
    library = HubLibrary(progress=False)
    assert library.hashes("a/b", ["a.pth", "config.json"], "main") == {"a.pth": "abc"}
