"""Fill a GPU on purpose, while a video is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import lipcast


@contextmanager
def full_device(model: lipcast.Lipcast, *, block: int, left_bytes: int) -> Iterator[None]:
    """From the decoding of a block on, all but `left_bytes` of the device is taken."""
    held: list[Tensor] = []
    decode, calls = model.bundle.vae.decode_chunk, 0

    def filling(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == block:
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            held.append(torch.empty(max(0, free - left_bytes), dtype=torch.uint8, device="cuda"))
        return decode(*args, **kwargs)

    with mock.patch.object(model.bundle.vae, "decode_chunk", filling):
        yield
    held.clear()
