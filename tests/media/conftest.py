"""What the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media_helpers import EncodeSound, encode


@pytest.fixture
def encode_sound(tmp_path: Path) -> EncodeSound:
    """encode_sound(name, samples [n, channels], rate, codec, layout=None) -> path"""

    def make(
        name: str, samples: np.ndarray, rate: int, codec: str, *, layout: str | None = None
    ) -> Path:
        path = tmp_path / name
        encode(path, samples, rate, codec, layout)
        return path

    return make
