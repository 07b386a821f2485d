"""Opening weight files of every kind as one `TensorSource`.

Input: a path to `.safetensors`, to a sharded set's `.safetensors.index.json`, to `.pth`, `.pt`,
`.bin` or `.gguf`. Output: a source with all headers checked and no data read. What stands in for weights by
mistake (a web page, a git-lfs pointer, an empty file, a set with holes) is named as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.weights.checkpoint import INDEX_SUFFIX
from lipcast.weights.disk import check_downloaded, parse_json
from lipcast.weights.gguf_file import MAGIC, GgufSource
from lipcast.weights.pth_file import PthSource
from lipcast.weights.safetensors_file import MAX_HEADER_BYTES, SafetensorsSource
from lipcast.weights.source import TensorSource, summarise_names

RECIPE_KEY = "lipcast_recipe"
"""Metadata of converted files: what they were made from and how, as JSON."""
PTH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_MAX_NAME = 200
_PICKLED = (b"PK\x03\x04", b"\x80\x02")
"""A zip file, and a pickle: how PyTorch writes since 1.6, and before."""


def open_tensors(path: str | Path, *, mapped: bool = False) -> TensorSource:
    """Open one weight file or one sharded set; raises CheckpointError.

    `mapped` makes the tensors of safetensors files views of the mapped file: nothing is read until
    it is used, and processes share the pages. Otherwise every tensor is read into its own memory.
    """
    path = Path(path)
    head = check_downloaded(path)
    if path.name.endswith(INDEX_SUFFIX):
        return ShardedSource(path, mapped=mapped)
    match _format(path, head):
        case ".safetensors":
            return SafetensorsSource(path, mapped=mapped)
        case ".gguf":
            return GgufSource(path)
        case ".pth":
            return PthSource(path)
    raise CheckpointError(
        f"{path}: expected .safetensors, {INDEX_SUFFIX}, {', '.join(PTH_SUFFIXES)}, .gguf; "
        f'got "{path.suffix}"'
    )


def _format(path: Path, head: bytes) -> str:
    """Return the format that the first bytes show, whatever the file is called, or its suffix."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return ".safetensors"
    if head.startswith(MAGIC):
        return ".gguf"
    if path.suffix in PTH_SUFFIXES:
        return ".pth"
    if head.startswith(_PICKLED):
        raise CheckpointError(f"{path}: this is a PyTorch file; rename it to {path.stem}.pth")
    return path.suffix


class ShardedSource(TensorSource):
    """A set of safetensors files that an index lists: {"weight_map": {tensor: file}}."""

    def __init__(self, path: Path, *, mapped: bool = False) -> None:
        self.path = path
        weight_map, self.metadata = _read_index(path)
        names = sorted(set(weight_map.values()))
        _check_shard_numbers(path, names)
        self._shards = {name: _open_shard(path, name, mapped=mapped) for name in names}
        self.files = (path, *(shard.path for shard in self._shards.values()))
        _check_index(path, weight_map, self._shards)
        _check_recipe(path, self.metadata, self._shards.values())
        self.infos = {k: v for shard in self._shards.values() for k, v in shard.infos.items()}
        self._weight_map = weight_map

    def read(self, name: str) -> Tensor:
        return self._shards[self._weight_map[name]].read(name)


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    try:
        content = parse_json(path.read_bytes())
        weight_map = {str(k): str(v) for k, v in content["weight_map"].items()}
        metadata = {str(k): str(v) for k, v in content.get("metadata", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{path}: expected an index with a "weight_map", but it cannot be read; '
            "download it again"
        ) from error
    return weight_map, metadata


def _check_shard_numbers(index: Path, names: list[str]) -> None:
    """Every file that the numbering "-00002-of-00004" promises must be in the index."""
    numbered = [match for name in names if (match := re.search(r"-(\d{5})-of-(\d{5})\.", name))]
    if not numbered:
        return
    count = int(numbered[0][2])
    absent = sorted(set(range(1, count + 1)) - {int(match[1]) for match in numbered})
    if absent:
        numbers = ", ".join(f"{number:05d}" for number in absent[:8])
        raise CheckpointError(
            f"{index}: expected {count} files, the index does not list number {numbers}; "
            "the index is of another revision or damaged, download it again"
        )


def _open_shard(index: Path, name: str, *, mapped: bool) -> SafetensorsSource:
    path = index.parent / name
    if path.name != name or len(name) > _MAX_NAME or "\0" in name:
        raise CheckpointError(
            f"{index}: lists {name[:80]!r}, which is no name of a file; download it again"
        )
    if not path.is_file():
        raise CheckpointError(
            f"{path}: the file is missing, but {index.name} lists it; "
            f"download it into {index.parent}"
        )
    check_downloaded(path)
    return SafetensorsSource(path, mapped=mapped)


def _check_index(
    index: Path, weight_map: Mapping[str, str], shards: Mapping[str, SafetensorsSource]
) -> None:
    """Index and files must agree on every tensor."""
    absent = [name for name, file in weight_map.items() if name not in shards[file].infos]
    extra = [
        name
        for file, shard in shards.items()
        for name in shard.infos
        if weight_map.get(name) != file
    ]
    if not absent and not extra:
        return
    parts = [f"{index}: the index and its files disagree; they are of different revisions."]
    if absent:
        parts.append(f"Listed, but not in the file named for them:\n{summarise_names(absent)}")
    if extra:
        parts.append(f"In a file, but not listed for it:\n{summarise_names(extra)}")
    raise CheckpointError("\n".join([*parts, "Download the whole set again from one revision."]))


def _check_recipe(
    index: Path, metadata: Mapping[str, str], shards: Iterable[SafetensorsSource]
) -> None:
    """Converted files must come from one conversion: their names alone would not tell."""
    expected = metadata.get(RECIPE_KEY)
    for shard in shards:
        if shard.metadata.get(RECIPE_KEY) != expected:
            raise CheckpointError(
                f"{shard.path}: is from another conversion than {index.name}; convert again"
            )
