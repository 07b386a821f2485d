"""Case 12: the output size of a picture, and the picture at that size. Both exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from lipcast.config.geometry import fit_size
from lipcast.media.image import fit_portrait

OpenCase = Callable[[str], Any]


def test_sizes_are_exact(golden: OpenCase) -> None:
    rows = golden("case12")["outputs/size_rows_H_W_area_outH_outW"].tolist()
    assert rows
    wrong = [row for row in rows if list(fit_size(*row[:3])) != row[3:]]
    assert wrong == []


def test_pictures_are_exact(golden: OpenCase) -> None:
    case = golden("case12")
    names = [
        n.split("/")[1] for n in case.names if n.startswith("inputs/") and n.endswith("/image_u8")
    ]
    assert names
    for name in names:
        image = Image.fromarray(case[f"inputs/{name}/image_u8"].numpy())
        height, width = case[f"outputs/{name}/target"].tolist()
        fitted = fit_portrait(image, height, width)
        expected = case[f"outputs/{name}/resized_cropped_u8"].numpy()
        np.testing.assert_array_equal(fitted, expected, err_msg=name)
