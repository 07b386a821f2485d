"""ICC profiles made for tests: a matrix with a power curve, a grey curve, and a small CMYK table."""

from __future__ import annotations

import struct

import numpy as np

P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
ADOBE = (0.640, 0.330, 0.210, 0.710, 0.150, 0.060)
PROPHOTO = (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
SRGB = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def rgb_to_xyz(
    primaries: tuple[float, ...], white: tuple[float, float], to: np.ndarray
) -> np.ndarray:
    """The matrix from linear RGB to XYZ under the white `to`."""
    columns = np.array([_xyz(*primaries[i : i + 2]) for i in (0, 2, 4)]).T
    matrix = columns * np.linalg.solve(columns, _xyz(*white))
    gains = (_BRADFORD @ to) / (_BRADFORD @ _xyz(*white))
    return np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ matrix


def _fixed(values: np.ndarray) -> bytes:
    return b"".join(struct.pack(">i", round(float(v) * 65536)) for v in np.ravel(values))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50_XYZ),
        **tags,
    }
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    size = 128 + 4 + len(table) + len(body)
    header = struct.pack(">I", size) + bytes(4) + b"\x02\x40\0\0" + kind + space + connection
    header += bytes(12) + b"acsp" + bytes(28) + _fixed(_D50_XYZ)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def matrix_profile(
    primaries: tuple[float, ...], gamma: float, white: tuple[float, float] = D65
) -> bytes:
    matrix = rgb_to_xyz(primaries, white, _D50_XYZ)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {}
    for i, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(matrix[:, i])
        tags[name + b"TRC"] = curve
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk_profile(lab_of_cyan: tuple[float, float, float]) -> bytes:
    """Paper is white, the first ink alone has the colour that is given, any other ink is black."""
    entries = b""
    colours = {(0, 0, 0, 0): (100.0, 0.0, 0.0), (1, 0, 0, 0): lab_of_cyan}
    for ink in np.ndindex(2, 2, 2, 2):
        light, a, b = colours.get(ink, (0.0, 0.0, 0.0))
        entries += bytes((round(light * 2.55), round(a + 128), round(b + 128)))
    identity = bytes(range(256))
    matrix = _fixed(np.eye(3))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + 4 * identity + entries + 3 * identity
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def encoded_in(
    rgb: np.ndarray, primaries: tuple[float, ...], gamma: float, white: tuple[float, float] = D65
) -> np.ndarray:
    """sRGB pixels as another space has them, computed here and not by the library."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to = rgb_to_xyz(SRGB, D65, _D50_XYZ)
    back = np.linalg.inv(rgb_to_xyz(primaries, white, _D50_XYZ))
    mixed = (linear @ (back @ to).T).clip(0, 1)
    return np.rint(255 * mixed ** (1 / gamma)).astype(np.uint8)
