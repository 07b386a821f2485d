"""A model on one process, and the decoder that it shares with those on several."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_groups import alone, write_decoder

import lipcast


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder") / "decoder.safetensors")


@pytest.fixture(scope="module")
def single(home: Path, decoder: Path) -> lipcast.Lipcast:
    return alone(decoder)
