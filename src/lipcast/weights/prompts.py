"""Prompt embeddings on the disk: a second run with the same prompt needs no text encoder.

Input: a prompt and the identity of a text encoder, which is a hash of its files and its tokenizer.
Output: the context [tokens, channels], as a file of its own or from a cache of such files. A file
holds the hash of its data: one that is not whole is never taken for whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lipcast.env import logger
from lipcast.errors import CheckpointError, OutputError
from lipcast.weights.checkpoint import CheckpointFiles
from lipcast.weights.disk import make_directory, sha256_of, write_text
from lipcast.weights.files import open_tensors
from lipcast.weights.safetensors_file import SafetensorsSource
from lipcast.weights.writer import write_tensors

FORMAT = "lipcast prompt 1"
"""Changes when the same text and the same encoder would give other numbers."""
_TENSOR = "context"

_log = logger("weights.prompts")


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """The context [tokens, channels] of `prompt`, which the transformer attends to."""

    context_TC: Tensor
    prompt: str
    text_encoder: str
    """Identity of the encoder, as `text_identity` gives it."""


def write_embedding(path: Path, embedding: PromptEmbedding) -> None:
    """Write an embedding, complete or not at all; raises OutputError."""
    context_TC = embedding.context_TC.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "prompt": embedding.prompt,
        "text_encoder": embedding.text_encoder,
        "sha256": _hash(context_TC),
    }
    make_directory(path.parent)
    write_tensors(path, {_TENSOR: context_TC}, metadata=metadata)


def read_embedding(path: Path) -> PromptEmbedding:
    """Read an embedding; raises CheckpointError for anything else, or one that is not whole."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a prompt embedding, found nothing there; "
            "make one with `lipcast encode-prompt`"
        )
    source = SafetensorsSource(path)
    if source.metadata.get("format") != FORMAT or list(source.infos) != [_TENSOR]:
        raise CheckpointError(
            f'{path}: expected a prompt embedding ("{FORMAT}"), got another safetensors file; '
            "make one with `lipcast encode-prompt`"
        )
    context_TC = source.read(_TENSOR)
    if source.metadata.get("sha256") != _hash(context_TC):
        raise CheckpointError(
            f"{path}: is damaged, its numbers are not those that were written; "
            "make it again with `lipcast encode-prompt`"
        )
    return PromptEmbedding(
        context_TC, source.metadata.get("prompt", ""), source.metadata.get("text_encoder", "")
    )


def _hash(context_TC: Tensor) -> str:
    return hashlib.sha256(context_TC.view(torch.uint8).numpy().tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class PromptCache:
    """A folder of embeddings, and of the hashes of large files, so that each is hashed once."""

    folder: Path

    def get(self, prompt: str, text_encoder: str) -> Tensor | None:
        """Return the context of a prompt; None where it is not known or its file is not whole."""
        path = self._path(prompt, text_encoder)
        if not path.exists():
            return None
        try:
            found = read_embedding(path)
        except CheckpointError as error:
            _log.warning("ignored, and made again: %s", error)
            return None
        same = (found.prompt, found.text_encoder) == (prompt, text_encoder)
        return found.context_TC if same else None

    def put(self, embedding: PromptEmbedding) -> None:
        """Remember an embedding; where that fails, the video is made all the same."""
        try:
            write_embedding(self._path(embedding.prompt, embedding.text_encoder), embedding)
        except OutputError as error:
            _log.warning("the prompt's embedding was not kept: %s", error)

    def text_identity(self, files: CheckpointFiles) -> str:
        """Return one hash of what decides an embedding: encoder, tokenizer, configuration."""
        digest = hashlib.sha256(FORMAT.encode())
        for name, path in _text_files(files):
            digest.update(f"{name}\0{self._hash_of(path)}\n".encode())
        return digest.hexdigest()

    def _path(self, prompt: str, text_encoder: str) -> Path:
        key = hashlib.sha256(f"{text_encoder}\0{prompt}".encode("utf-8", "surrogatepass"))
        return self.folder / f"{key.hexdigest()}.safetensors"

    def _hash_of(self, path: Path) -> str:
        """Return the hash of a file, read again only if its size or time of change is another."""
        path = path.resolve()
        found = path.stat()
        stamp = [str(path), found.st_size, found.st_mtime_ns]
        name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()
        note = self.folder / "files" / f"{name}.json"
        if (known := _read_note(note, stamp)) is not None:
            return known
        digest = sha256_of(path)
        try:
            make_directory(note.parent)
            write_text(note, json.dumps({"file": stamp, "sha256": digest}))
        except OutputError as error:
            _log.warning("the hash of %s was not kept: %s", path.name, error)
        return digest


def _read_note(note: Path, stamp: list[object]) -> str | None:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        return str(content["sha256"]) if content["file"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        # Not there, or broken: hashing the file again is all it costs.
        return None


def _text_files(files: CheckpointFiles) -> Iterator[tuple[str, Path]]:
    """Yield (what it is, path) of every file that takes part; names of folders do not matter."""
    assert files.text is not None
    for path in open_tensors(files.text).files:
        yield "encoder", path
    if files.text_config is not None:
        yield "configuration", files.text_config
    if files.tokenizer is not None:
        yield "tokenizer", files.tokenizer / "tokenizer.json"
