"""Pictures of what the networks make while they are trained, as PNG files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lipcast.weights.disk import make_directory, replacing

_SHOWN = 8
"""Frames of a video that are shown, evenly spread."""


def write_strip(path: Path, videos: Sequence[Tensor]) -> None:
    """Write frames of videos_BCTHW in [-1, 1] side by side, one video a row. Raises OutputError."""
    rows = []
    for video_BCTHW in videos:
        num_frames = video_BCTHW.shape[2]
        count = min(_SHOWN, num_frames)
        index = torch.linspace(0, num_frames - 1, count).long()
        frames = video_BCTHW[0, :, index.to(video_BCTHW.device)].float()
        rows.append(frames.permute(2, 1, 3, 0).flatten(1, 2))
    pixels_HWC = ((torch.cat(rows).clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    make_directory(path.parent)
    with replacing(path) as file:
        file.write(png_bytes(pixels_HWC))


def png_bytes(pixels_HWC: Tensor) -> bytes:
    """Return an 8-bit RGB picture as a PNG file; no library, so that a bare machine can do it."""
    height, width, _ = pixels_HWC.shape
    raw = b"".join(b"\0" + row.numpy().tobytes() for row in pixels_HWC.contiguous())
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
