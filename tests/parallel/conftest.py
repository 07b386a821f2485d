"""A model on one process, and the decoder that it shares with those on several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rank_groups import alone, write_decoder

import lipcast


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder") / "decoder.safetensors")


@pytest.fixture(scope="module")
def single(home: Path, decoder: Path) -> lipcast.Lipcast:
    return alone(decoder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the ranks: the number of threads decides the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
