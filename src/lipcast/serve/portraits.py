"""Portraits that sessions may begin with: the included ones, and those that were uploaded.

Uploads are decoded within limits, made smaller, and kept in memory only; the oldest goes when there are
too many. Names from requests are looked up and never become paths.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from importlib.resources import files
from threading import Lock
from typing import TYPE_CHECKING

from lipcast.errors import InputError
from lipcast.media.image import load_portrait

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
_LONGEST_SIDE = 2048
_KEPT = 32


class Portraits:
    """All portraits of one server."""

    def __init__(self, *, max_pixels: int) -> None:
        self._max_pixels, self._lock = max_pixels, Lock()
        folder = files("lipcast") / "assets" / "examples"
        self.examples = {
            entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()
        }
        """Contents of the included pictures and of the voice, by name."""
        self._uploads: OrderedDict[str, Image] = OrderedDict()

    @property
    def example_names(self) -> list[str]:
        """The included pictures."""
        return sorted(name for name in self.examples if name.endswith(".png"))

    def add(self, content: bytes) -> tuple[str, Image]:
        """Keep an uploaded picture; returns its name. Raises InputError where it cannot be used."""
        image = load_portrait(content, max_pixels=self._max_pixels, formats=FORMATS)
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        name = hashlib.sha256(content).hexdigest()[:24]
        with self._lock:
            self._uploads[name] = image
            self._uploads.move_to_end(name)
            while len(self._uploads) > _KEPT:
                self._uploads.popitem(last=False)
        return name, image

    def get(self, name: str) -> Image:
        """Return a portrait by name. Raises InputError where there is none."""
        with self._lock:
            if name in self._uploads:
                return self._uploads[name]
        if name not in self.example_names:
            raise InputError(f"no portrait {name[:40]!r} is here; upload it again")
        return load_portrait(self.examples[name])
