"""The fields of a request for a video, checked: texts, a portrait, a voice.

Input: a multipart form; a file may also come as a data URL, as it is or in JSON ({"audio_url": URL}). Output:
a `VideoForm`. Addresses are never fetched.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from starlette.datastructures import FormData, UploadFile

from lipcast.config.generate_options import GenerateOptions, parse_size
from lipcast.errors import UsageError
from lipcast.serve.settings import MAX_PROMPT, ServeSettings

TEXTS = ("prompt", "model", "size", "seconds", "seed", "num_inference_steps")
PORTRAITS = ("input_reference", "input_reference[image_url]", "image_reference")
VOICES = ("audio_reference", "audio_reference[audio_url]", "source_audio")
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class VideoForm:
    """A video that somebody asks for."""

    prompt: str
    options: GenerateOptions
    seconds: float | None
    """The voice is cut after so long; None: it is spoken to its end."""
    portrait: bytes
    voice: BinaryIO


def read_form(
    form: FormData, *, model: str, options: GenerateOptions, settings: ServeSettings
) -> VideoForm:
    """Return the request for a video with this model. Raises UsageError, which names the field."""
    fields = _fields(form)
    texts = {name: _text(fields[name], name) for name in TEXTS if name in fields}
    asked = texts.get("model", model)
    if asked != model:
        raise UsageError(f"model: this server has {model!r} only, got {asked[:40]!r}")
    return VideoForm(
        prompt=texts.get("prompt", ""),
        options=_options(texts, options, settings),
        seconds=_seconds(texts.get("seconds")),
        portrait=_content(fields, PORTRAITS, "a picture").read(),
        voice=_content(fields, VOICES, "a sound"),
    )


def _fields(form: FormData) -> dict[str, UploadFile | str]:
    fields: dict[str, UploadFile | str] = {}
    for name, value in form.multi_items():
        if name not in (*TEXTS, *PORTRAITS, *VOICES):
            known = ", ".join((*TEXTS, PORTRAITS[0], VOICES[0]))
            raise UsageError(f"unknown field {name[:40]!r}; expected one of: {known}")
        if name in fields:
            raise UsageError(f"{name}: was given twice; give it once")
        fields[name] = value
    return fields


def _text(value: UploadFile | str, name: str) -> str:
    most = MAX_PROMPT if name == "prompt" else _MAX_NAME
    if not isinstance(value, str) or len(value) > most:
        raise UsageError(f"{name}: expected a text of at most {most} characters")
    return value


def _options(
    texts: Mapping[str, str], options: GenerateOptions, settings: ServeSettings
) -> GenerateOptions:
    size = texts.get("size")
    if size is not None:
        if parse_size(size) > settings.max_video_pixels:
            raise UsageError(
                f"size: expected at most {settings.max_video_pixels} pixels, got {size[:40]!r}"
            )
        options = replace(options, size=size)
    if "seed" in texts:
        options = replace(options, seed=_whole(texts["seed"], "seed"))
    if "num_inference_steps" in texts:
        steps = _whole(texts["num_inference_steps"], "num_inference_steps")
        options = replace(options, sample_steps=steps)
    return options


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name}: expected a whole number, got {text[:40]!r}")
    return int(text)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"seconds: expected a number above 0, got {text[:40]!r}")
    return seconds


def _content(fields: Mapping[str, UploadFile | str], names: tuple[str, ...], what: str) -> BinaryIO:
    given = [name for name in names if name in fields]
    if len(given) != 1:
        how = "is missing" if not given else f"and {given[1]} were both given"
        raise UsageError(f"{names[0]}: {how}; send {what} as one file, or as a data URL")
    value = fields[given[0]]
    if isinstance(value, str):
        return io.BytesIO(_from_data_url(_address(value, given[0]), given[0]))
    return value.file


def _address(text: str, name: str) -> str:
    """Return the address in a JSON document such as {"audio_url": ADDRESS}, or the text itself."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: expected a file, or JSON with a data URL") from error
    addresses = [found[key] for key in ("audio_url", "image_url", "url") if key in found]
    if len(addresses) != 1 or not isinstance(addresses[0], str):
        raise UsageError(f"{name}: expected JSON with one data URL, as audio_url or image_url")
    return str(addresses[0])


def _from_data_url(address: str, name: str) -> bytes:
    head, comma, content = address.partition(",")
    if not head.lower().startswith("data:") or not comma:
        raise UsageError(
            f"{name}: expected a file or a data URL, got {address[:20]!r}; this server fetches nothing"
        )
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{name}: its base64 is broken; encode it again") from error
