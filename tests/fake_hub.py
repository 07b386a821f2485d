"""A hub that delivers small files under the published names, for tests of what pulls."""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipcast.weights.hub import MODELS

NAME = "live-avatar-14b"
WAN, ADAPTER = (repository.repo for repository in MODELS[NAME])
FILES = {
    WAN: {
        "config.json": 20,
        "diffusion_pytorch_model.safetensors.index.json": 30,
        **{f"diffusion_pytorch_model-0000{n}-of-00004.safetensors": 1000 + n for n in range(1, 5)},
        "models_t5_umt5-xxl-enc-bf16.pth": 700,
        "Wan2.1_VAE.pth": 400,
        "google/umt5-xxl/tokenizer.json": 50,
        "wav2vec2-large-xlsr-53-english/config.json": 10,
        "wav2vec2-large-xlsr-53-english/model.safetensors": 300,
        "wav2vec2-large-xlsr-53-english/flax_model.msgpack": 300,
        "wav2vec2-large-xlsr-53-english/pytorch_model.bin": 300,
        "README.md": 5,
        "assets/logo.png": 99,
    },
    ADAPTER: {"liveavatar.safetensors": 600, "README.md": 5, "old.safetensors": 600},
}
UNWANTED = (
    "README.md", "assets/logo.png", "flax_model.msgpack", "pytorch_model.bin", "old.safetensors",
)  # fmt: skip


LARGE = 300
"""From this size on the hub knows a file's hash."""


@dataclass
class DryRunFile:
    filename: str
    file_size: int | None
    commit_hash: str


@dataclass
class FakeHub:
    """Behaves like snapshot_download; stops with `fail` after `files_before_failure` files."""

    head: str = "c0ffee"
    fail: Exception | None = None
    files_before_failure: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, repo: str, **options: Any) -> Any:
        self.calls.append({"repo": repo, **options})
        if self.fail is not None and not self.files_before_failure:
            raise self.fail
        commit = options["revision"] or self.head
        wanted = {
            name: size
            for name, size in FILES[repo].items()
            if any(fnmatch.fnmatch(name, p) for p in options["allow_patterns"])
        }
        if options.get("dry_run"):
            return [DryRunFile(name, size, commit) for name, size in wanted.items()]
        for name, size in wanted.items():
            self.write(options["local_dir"] / name, size)
        return str(options["local_dir"])

    def hashes(self, repo: str, files: list[str], revision: str) -> dict[str, str]:
        """Of the files that are zeros of the listed size."""
        assert revision
        large = {name: FILES[repo][name] for name in files if FILES[repo][name] >= LARGE}
        return {name: hashlib.sha256(bytes(size)).hexdigest() for name, size in large.items()}

    def write(self, path: Path, size: int) -> None:
        if self.fail is not None and self.files_before_failure == 0:
            raise self.fail
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        self.files_before_failure -= 1
