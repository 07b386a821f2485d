"""The tensors of each network of a checkpoint, under their official names, whoever wrote the file.

Inputs: a weight file of any kind and the configuration of the network. Output: a source with the
official names and plain floats: prefixes and the names of diffusers or transformers are translated,
8-bit weights with scales are multiplied out. A file of another network is called what it is.
"""

from __future__ import annotations

from pathlib import Path

from lipcast.config.models import DiTConfig, TextConfig, VAEConfig
from lipcast.errors import CheckpointError
from lipcast.planning.tensors import dit_tensors, text_tensors, vae_tensors
from lipcast.weights.files import open_tensors
from lipcast.weights.names import NameTable, dit_table, text_table, vae_table
from lipcast.weights.recognise import recognise
from lipcast.weights.scaled import UnscaledSource, unscaled
from lipcast.weights.source import RenamedSource, TensorSource

_WANTED = {
    "dit": "the transformer of Wan2.2-S2V",
    "vae": "the video autoencoder of Wan 2.1",
    "text": "the text encoder (UMT5)",
}


def open_dit(path: Path, config: DiTConfig, *, mapped: bool = False) -> TensorSource:
    """Open the transformer; `mapped` as in `open_tensors`. Raises CheckpointError."""
    return _open(path, "dit", dit_table(dit_tensors(config)), mapped=mapped)


def open_vae(path: Path, config: VAEConfig) -> TensorSource:
    """Open the video autoencoder; raises CheckpointError."""
    table = vae_table(vae_tensors(config), num_res_blocks=config.num_res_blocks)
    return _open(path, "vae", table)


def open_text(path: Path, config: TextConfig, *, mapped: bool = False) -> TensorSource:
    """Open the text encoder; raises CheckpointError. The decoder of a whole UMT5 is left out."""
    table = text_table(text_tensors(config))
    return _open(path, "text", table, mapped=mapped, unused=("decoder.", "lm_head."))


def _open(
    path: Path,
    part: str,
    table: NameTable,
    *,
    mapped: bool = False,
    unused: tuple[str, ...] = (),
) -> TensorSource:
    source = open_tensors(path, mapped=mapped)
    kind = recognise(source)
    if kind is not None and kind.part != part:
        raise CheckpointError(
            f"{path}: expected {_WANTED[part]}, found {kind.description}; "
            "replace the file, or correct the path"
        )
    plain = unscaled(_renamed(source, table, unused))
    if mapped and isinstance(plain, UnscaledSource):
        # Every weight gets memory of its own: pages of the file would only be held beside it.
        return _open(path, part, table, unused=unused)
    return plain


def _renamed(source: TensorSource, table: NameTable, unused: tuple[str, ...]) -> TensorSource:
    """Return the source under official names; what has none keeps its own."""
    names: dict[str, str] = {}
    if "shared.weight" in source.infos:  # transformers keeps the embedding twice
        unused = (*unused, "encoder.embed_tokens.")
    for name in source.infos:
        if not name.startswith(unused):
            names.setdefault(_official(name, table), name)
    chosen = {old: new for new, old in names.items()}
    if all(chosen.get(name) == name for name in source.infos):
        return source
    return RenamedSource(source, chosen.get)


def _official(name: str, table: NameTable) -> str:
    """Return the official name of a tensor, or of what is stored beside a weight."""
    if name in table.tensors:
        return name
    found = table.find(name)
    if found in table.tensors:
        return str(found)
    owner, _, leaf = name.rpartition(".")
    layer = table.find(owner)
    return name if layer is None or layer in table.tensors else f"{layer}.{leaf}"
