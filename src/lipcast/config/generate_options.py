"""Options of a video, checked: one frozen dataclass with every default in one place.

Input: plain values, from the command line, a job file or a Python call. Output: `GenerateOptions`.
Wrong values raise UsageError with what was expected; nothing here touches a file or a device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal

from lipcast.config.models import VIDEO_FRAMES_PER_LATENT
from lipcast.errors import UsageError

ScheduleName = Literal["sequential", "wavefront"]
ReferenceEncoding = Literal["video", "image"]
Crop = Literal["center", "face"]

SCHEDULES: tuple[ScheduleName, ...] = ("sequential", "wavefront")
REFERENCE_ENCODINGS: tuple[ReferenceEncoding, ...] = ("video", "image")
CROPS: tuple[Crop, ...] = ("center", "face")
MAX_STEPS = 8
MIN_INFER_FRAMES = 12
MAX_SEED = 2**64 - 1
MAX_AUDIO_SCALE = 3.0
_MAX_COUNT = 2**31 - 4


def parse_size(text: str) -> int:
    """Return the area in pixels of a size such as "704*384" (`*` or `x` between the sides)."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*[*xX×]\s*(\d{1,5})\s*", text)
    if not match:
        raise UsageError(f'size: expected two numbers such as "704*384", got "{text}"')
    area = int(match[1]) * int(match[2])
    if area < 64 * 64:
        raise UsageError(f'size: expected at least "64*64", got "{text}"')
    return area


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How to generate. `None` means: what the model was trained with.

    `size` is an area written as two sides; the picture's own aspect decides the sides.
    `infer_frames` (video frames) sets the attention window and the noise clips: any multiple of 4 from 12.
    `num_clip` bounds the length in clips; the sound bounds it too.
    `fold_last_step` drops the last evaluation and steps the one before it straight to sigma 0.
    `reference_encoding` says how the reference latent is encoded.
    `swap_reference` replaces the reference latent with the first generated one after the first clip.
    `cond_distance` fixes the rotary distance of the reference in the sink; None draws it from (seed, block).
    `schedule` left open is the plan's choice where memory is planned, else sequential.
    `start_frame` is the latent frame the video starts at (for positions far into a long video).
    `clean_audio` hears the loudest channel where the channels cancel each other, and nothing where there is
    only noise; off, the arithmetic is the published one.
    `audio_scale`: how strongly the voice moves the picture, 0 to 3; 1: as trained, more is livelier.
    `pose`: a pose video is followed. What gives one sets it, and the plan counts its encoder.
    `crop`: "center" takes the whole picture; "face" a square around its largest face.
    """

    size: str | None = None
    infer_frames: int | None = None
    num_clip: int | None = None
    sample_steps: int | None = None
    seed: int = 420
    schedule: ScheduleName | None = None
    fold_last_step: bool = True
    reference_encoding: ReferenceEncoding = "video"
    swap_reference: bool = True
    cond_distance: int | None = None
    start_frame: int = 0
    clean_audio: bool = True
    audio_scale: float = 1.0
    crop: Crop = "center"
    pose: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            parse_size(self.size)
        _check_choice("schedule", self.schedule or SCHEDULES[0], SCHEDULES)
        _check_choice("reference_encoding", self.reference_encoding, REFERENCE_ENCODINGS)
        _check_choice("crop", self.crop, CROPS)
        _check_range("num_clip", self.num_clip, 1)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("start_frame", self.start_frame, 0)
        _check_range("cond_distance", self.cond_distance, 1)
        _check_scale("audio_scale", self.audio_scale)
        _check_infer_frames(self.infer_frames)
        _check_steps(self.sample_steps)


OPTION_NAMES = tuple(field.name for field in fields(GenerateOptions))
EARLIER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "anchor": "reference_encoding",
        "swap_anchor": "swap_reference",
        "no_swap_anchor": "no_swap_reference",
    }
)
"""Names that options had before: flags, job files and Python calls may still use them."""


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _check_range(name: str, value: int | None, least: int, most: int = _MAX_COUNT) -> None:
    if value is not None and (not _is_int(value) or not least <= value <= most):
        is_much = _is_int(value) and value > most
        bound = f"most {most}" if is_much else f"least {least}"
        raise UsageError(f"{name}: expected a whole number of at {bound}, got {value!r}")


def _check_infer_frames(value: int | None) -> None:
    if value is None:
        return
    step = VIDEO_FRAMES_PER_LATENT
    if not _is_int(value) or not MIN_INFER_FRAMES <= value <= _MAX_COUNT or value % step:
        near = 48
        if _is_int(value):
            near = min(max(MIN_INFER_FRAMES, (value + step // 2) // step * step), _MAX_COUNT)
        raise UsageError(
            f"infer_frames: expected a multiple of {step} from {MIN_INFER_FRAMES} up, got {value!r}; "
            f"the nearest is {near}"
        )


def _check_steps(value: int | None) -> None:
    if value is not None and (not _is_int(value) or not 1 <= value <= MAX_STEPS):
        raise UsageError(f"sample_steps: expected 1 to {MAX_STEPS}, got {value!r}")


def _check_scale(name: str, value: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_AUDIO_SCALE:
        most = f"{MAX_AUDIO_SCALE:g}"
        raise UsageError(
            f"{name}: expected a number from 0 to {most}, got {value!r}; 1 is the default"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
