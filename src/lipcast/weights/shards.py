"""A set of safetensors files written in shards, so that an interrupted run can be continued.

Input: a source and a recipe (text that names everything the result depends on). Output: the shards
and their index. Every finished shard leaves a record with its hash; a later run with the same
recipe keeps the shards whose bytes still have that hash and writes the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcast.weights.checkpoint import INDEX_SUFFIX
from lipcast.weights.disk import sha256_of, write_text
from lipcast.weights.files import RECIPE_KEY
from lipcast.weights.source import TensorInfo, TensorSource
from lipcast.weights.writer import write_safetensors

Advance = Callable[[int], None]
"""Called with the number of bytes just done."""


@dataclass(frozen=True, slots=True)
class SetWriter:
    """Writer of one set of shards: its place and what it depends on.

    `notes` gives what to remember about a finished shard besides its hash, as JSON values.
    """

    folder: Path
    records: Path
    stem: str
    recipe: str
    shard_bytes: int
    notes: Callable[[Sequence[TensorInfo]], Any] = lambda _: None

    def write(self, source: TensorSource, advance: Advance) -> list[dict[str, Any]]:
        """Write what is missing, then the index; return the records of all shards, in order.

        Raises OutputError where a file cannot be written.
        """
        shards = plan_shards(source.infos.values(), self.shard_bytes)
        names = [f"{self.stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in _ordinals(shards)]
        records = [
            self._finished(name, infos, advance) or self._write_shard(source, name, infos, advance)
            for name, infos in zip(names, shards, strict=True)
        ]
        weight_map = {i.name: name for name, s in zip(names, shards, strict=True) for i in s}
        self._write_index(source.num_bytes, weight_map)
        return records

    @property
    def index_path(self) -> Path:
        return self.folder / f"{self.stem}{INDEX_SUFFIX}"

    def _finished(
        self, name: str, infos: Sequence[TensorInfo], advance: Advance
    ) -> dict[str, Any] | None:
        """Return the record of a shard that an earlier run finished, if the file still is what it says."""
        record_path, path = self._record_path(name), self.folder / name
        if not record_path.is_file() or not path.is_file():
            return None
        record: dict[str, Any] = json.loads(record_path.read_text(encoding="utf-8"))
        if sha256_of(path) != record["sha256"]:
            return None
        advance(sum(info.num_bytes for info in infos))
        return record

    def _write_shard(
        self, source: TensorSource, name: str, infos: Sequence[TensorInfo], advance: Advance
    ) -> dict[str, Any]:
        metadata = {"format": "pt", RECIPE_KEY: self.recipe}
        path = self.folder / name
        digest = write_safetensors(path, infos, source.read, metadata=metadata, advance=advance)
        record = {
            "file": name,
            "bytes": path.stat().st_size,
            "sha256": digest,
            "notes": self.notes(infos),
        }
        write_text(self._record_path(name), json.dumps(record))
        return record

    def _record_path(self, name: str) -> Path:
        return self.records / f"{name}.json"

    def _write_index(self, total_bytes: int, weight_map: dict[str, str]) -> None:
        metadata = {"total_size": total_bytes, RECIPE_KEY: self.recipe}
        text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=1)
        write_text(self.index_path, text)


def _ordinals(shards: Sequence[object]) -> range:
    return range(1, len(shards) + 1)


def plan_shards(infos: Iterable[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    """Cut a list of tensors into runs of at most `shard_bytes`; a larger tensor is alone."""
    shards: list[list[TensorInfo]] = [[]]
    left_bytes = shard_bytes
    for info in infos:
        if info.num_bytes > left_bytes and shards[-1]:
            shards.append([])
            left_bytes = shard_bytes
        shards[-1].append(info)
        left_bytes -= info.num_bytes
    return shards
