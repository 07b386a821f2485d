"""Signed videos: the manifest is read back and verified, and what cannot sign is named."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from certificates import write_certificate
from cheap_worker import CheapRenderer
from lipcast.errors import InputError, UsageError
from lipcast.jobs.runner import input_sha256, run_jobs
from lipcast.jobs.store import Store
from lipcast.media.marking import TRAINED_ALGORITHMIC_MEDIA
from lipcast.media.signing import SigningKey, check_signed_target, read_manifest, sign_video
from lipcast.media.video import VideoWriter, read_video


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "talk.mp4"
    with VideoWriter(path, width=64, height=64, sample_rate=16_000, num_channels=1) as writer:
        writer.write(np.zeros((12, 64, 64, 3), np.uint8), np.zeros((7680, 1), np.float32))
    return path


def check_signed(path: Path) -> None:
    """Its signature is valid, and it says that a model has made the file."""
    found = read_manifest(path)
    assert found["validation_state"] == "Valid"  # the tests' authority is on nobody's list of trust
    assert {s["code"] for s in found["validation_status"]} == {"signingCredential.untrusted"}
    manifest = found["manifests"][found["active_manifest"]]
    assert manifest["claim_generator_info"][0]["name"] == "lipcast"
    (actions,) = [a["data"] for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2"]
    assert actions["actions"][0]["action"] == "c2pa.created"
    assert actions["actions"][0]["digitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA
    with av.open(str(path)) as file:
        assert TRAINED_ALGORITHMIC_MEDIA in file.metadata["comment"]  # which every file has


KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_signed_video_is_verified(video: Path, tmp_path: Path, key: str) -> None:
    before = read_video(video)
    sign_video(video, SigningKey(*write_certificate(tmp_path / "c", key=KEYS[key]())))
    check_signed(video)
    after = read_video(video)
    assert np.array_equal(before.frames, after.frames) and np.array_equal(before.audio, after.audio)
    assert {path.name for path in tmp_path.iterdir()} == {"talk.mp4", "c"}


def test_a_changed_video_is_found_out(video: Path, tmp_path: Path) -> None:
    sign_video(video, SigningKey(*write_certificate(tmp_path / "c")))
    content = bytearray(video.read_bytes())
    content[content.rindex(b"mdat") + 40] ^= 1
    video.write_bytes(content)
    assert read_manifest(video)["validation_state"] == "Invalid"


def test_an_unsigned_video_has_nothing_to_read(video: Path) -> None:
    with pytest.raises(InputError, match="carries no signature"):
        read_manifest(video)


@pytest.mark.parametrize(
    ("what", "says"),
    [("expired", "only; renew it"), ("early", "only; renew it"), ("other key", "is not the key of"),
     ("no certificate", "is no certificate in PEM"), ("no key", "is no private key in PEM"),
     ("not there", "cannot read"), ("purpose", "cannot sign"), ("curve", "P-256, P-384")],
)  # fmt: skip
def test_what_cannot_sign_is_named(video: Path, tmp_path: Path, what: str, says: str) -> None:
    days = {"expired": {"first_day": -9, "last_day": -1}, "early": {"first_day": 2}}.get(what, {})
    made = ec.generate_private_key(ec.SECP256K1()) if what == "curve" else None
    chain, key = write_certificate(tmp_path / "c", key=made, purpose=what != "purpose", **days)
    if what == "other key":
        key = write_certificate(tmp_path / "d")[1]
    elif what == "not there":
        key.unlink()
    elif what.startswith("no "):
        {"no key": key, "no certificate": chain}[what].write_text("x")
    before = video.read_bytes()
    with pytest.raises(InputError, match=says):
        sign_video(video, SigningKey(chain, key))
    assert video.read_bytes() == before and not list(tmp_path.glob(".lipcast*"))


def test_without_the_package(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signing = SigningKey(*write_certificate(tmp_path / "c"))
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UsageError, match=r"pip install 'lipcast\[c2pa\]'"):
        signing.check()


def test_matroska_carries_no_signature() -> None:
    with pytest.raises(UsageError, match="carry no signature"):
        check_signed_target(Path("talk.mkv"))


def test_a_job_is_signed(tmp_path: Path, portrait: Path, sound, capsys) -> None:
    store, output, audio = Store(tmp_path / "jobs"), tmp_path / "talk.mp4", sound(2.0)
    signing = SigningKey(*write_certificate(tmp_path / "c"))
    store.submit([{
        "image": str(portrait), "audio": str(audio), "output": str(output), "segment_s": 0.96,
        "sha256": {str(path): input_sha256(path) for path in (portrait, audio)},
        "options": {"seed": 1}, "keep_segments": False, "sign": signing.as_job(),
    }])  # fmt: skip
    assert run_jobs(store, CheapRenderer(), log=lambda _: None) == 0
    check_signed(output)
