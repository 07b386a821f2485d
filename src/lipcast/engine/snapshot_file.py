"""Write a `SessionSnapshot` to one file, and read it, so that another process can continue the video later.

Input: a snapshot, a path. Output: one safetensors file, complete or absent, with the hash of its data; the
same snapshot again, bit for bit. Bytes: 4 * (features + (1 + steps) * latents) of the blocks in it, 6 MB for
the embedded model at 256x256, 36 MB for the 14B at 704x384. Rings, tens of GB for a large model, are not
stored: replay fills them again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from lipcast.engine.snapshot import BlockSnapshot, SessionSnapshot
from lipcast.errors import InputError
from lipcast.weights.safetensors_file import SafetensorsSource
from lipcast.weights.writer import write_tensors

FORMAT = "lipcast past 2"
"""Job folders on disk hold this format: its name and its tensors' names stay as they were first written."""
_LATENTS, _FEATURES, _FIRST, _INPUTS = "latents", "voices", "first", "inputs"
_POSES = "poses"
"""Only of a video that follows a pose."""
_ALWAYS = {_LATENTS, _FEATURES, _FIRST}
"""Inputs exist for the newest blocks: all, or those since the video last changed its size or steps."""


def write_snapshot(path: Path, snapshot: SessionSnapshot) -> str:
    """Write a snapshot; return the sha256 of the file. Raises OutputError."""
    tensors = {
        _LATENTS: torch.stack([block.latent_CFHW for block in snapshot.blocks]),
        _FEATURES: torch.stack([block.features_LCV for block in snapshot.blocks]),
        _FIRST: snapshot.first_C1HW,
    }
    inputs = [torch.stack(block.inputs) for block in snapshot.blocks if block.inputs]
    if inputs:
        tensors[_INPUTS] = torch.stack(inputs)
    poses = [block.pose_CFHW for block in snapshot.blocks if block.pose_CFHW is not None]
    if poses:
        tensors[_POSES] = torch.stack(poses)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "next_block": str(snapshot.next_block),
        "sha256": _hash(snapshot.next_block, tensors),
    }
    return write_tensors(path, tensors, metadata=metadata)


def read_snapshot(path: Path, device: torch.device | str = "cpu") -> SessionSnapshot:
    """Read a snapshot onto a device. Raises InputError, or CheckpointError for a truncated file."""
    if not path.is_file():
        raise InputError(f"{path}: the snapshot of the video is missing; start the video again")
    source = SafetensorsSource(path)
    found = source.metadata.get("format", "another file")
    if found != FORMAT or set(source.infos) - {_INPUTS, _POSES} != _ALWAYS:
        raise InputError(
            f'{path}: expected the snapshot of a video ("{FORMAT}"), got "{found}"; start the video again'
        )
    tensors = {name: source.read(name) for name in source.infos}
    next_block = int(source.metadata["next_block"])
    if source.metadata.get("sha256") != _hash(next_block, tensors):
        raise InputError(f"{path}: the data does not match its hash; start the video again")
    latents, inputs = tensors[_LATENTS], [tuple(steps) for steps in tensors.get(_INPUTS, ())]
    known = [()] * (len(latents) - len(inputs)) + inputs
    poses: list[Tensor | None] = [*tensors.get(_POSES, ())] or [None] * len(latents)
    blocks = tuple(map(BlockSnapshot, latents, tensors[_FEATURES], known, poses))
    return SessionSnapshot(next_block, blocks, tensors[_FIRST]).to(device)


def _hash(next_block: int, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{next_block}".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
