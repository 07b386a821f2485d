"""All metrics of one video, and the curves behind them.

Input: a video; its sound, portrait and another run where there are. Output: `Evaluation`. What cannot
be measured is in it with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lipcast.lab.characters import lip_sync_of_characters
from lipcast.lab.compare import Comparison, compare
from lipcast.lab.drift import (
    colour_curve,
    drift,
    flicker,
    likeness_curve,
    portrait_likeness,
)
from lipcast.lab.face import FaceTrack, expression, face_track
from lipcast.lab.footage import Footage, Survey, survey
from lipcast.lab.identity import identity, load_recogniser, unavailable_identity
from lipcast.lab.metric import Metric, unavailable
from lipcast.lab.motion import frozen_frames, jumps, motion
from lipcast.lab.mouth import mouth_of_drawing
from lipcast.lab.mouth_select import Mouth, mouth_select, why
from lipcast.lab.seams import seams
from lipcast.lab.sync import GROUP as SYNC
from lipcast.lab.sync import Curve, lip_sync, loudness
from lipcast.lab.syncnet import load_network, syncnet, without_weights
from lipcast.media.characters import Character
from lipcast.media.image import load_portrait

BLOCK_FRAMES = 12


@dataclass(frozen=True, slots=True)
class EvaluationInput:
    """Video to evaluate, and the files to compare it with."""

    video: Path
    audio: Path | None = None
    """None: the video's own sound."""
    reference: Path | None = None
    against: Path | None = None
    face_model: Path | None = None
    syncnet: Path | None = None
    identity: Path | None = None
    pieces: Mapping[str, int] = field(default_factory=lambda: {"block": BLOCK_FRAMES})
    """Frames of a block, a clip, a segment."""
    characters: tuple[Character, ...] = ()
    """Several people in the picture; each mouth is judged by every voice."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`curves`: one value a frame, by name; `change` belongs to the step from the frame before."""

    video: str
    num_frames: int
    fps: float
    size: tuple[int, int]
    metrics: list[Metric]
    curves: dict[str, list[float]]
    events: dict[str, list[int]]

    def value(self, group: str, name: str) -> float | None:
        """Return one metric's value; None where there is none."""
        return next(m.value for m in self.metrics if (m.group, m.name) == (group, name))

    def document(self) -> dict[str, Any]:
        """Return the evaluation as plain data."""
        return {
            "video": self.video,
            "num_frames": self.num_frames,
            "fps": self.fps,
            "width": self.size[1],
            "height": self.size[0],
            "metrics": [metric.document() for metric in self.metrics],
            "curves": {name: [round(v, 4) for v in curve] for name, curve in self.curves.items()},
            "events": self.events,
        }


def evaluate(question: EvaluationInput) -> Evaluation:
    """Measure everything that can be measured. Raises InputError for files that cannot be read."""
    footage = Footage.of_file(question.video)
    seen = survey(footage)
    portrait = None
    if question.reference is not None:
        portrait = portrait_likeness(question.reference, size=seen.size)
    face = face_track(footage, question.face_model)
    metrics = [*motion(seen, fps=footage.fps), *expression(face)]
    who, resemblance = _identity(question, footage, face)
    metrics += seams(seen, dict(question.pieces))
    metrics += [*drift(seen, portrait, fps=footage.fps), *who, *flicker(seen)]
    curves = _curves(seen, footage.fps)
    if resemblance is not None:
        curves["identity"] = resemblance.tolist()
    if portrait is not None:
        curves["likeness to the portrait"] = likeness_curve(seen, portrait.thumb).tolist()
    spoken = _spoken(question, footage, face, curves)
    if question.characters:
        spoken += lip_sync_of_characters(
            footage,
            question.characters,
            portrait=question.reference,
            face_model=question.face_model,
        )
    other: Comparison | None = None
    if question.against is not None:
        other = compare(footage, Footage.of_file(question.against))
        curves |= {"PSNR": other.psnr_curve, "SSIM": other.ssim_curve}
    return Evaluation(
        video=str(question.video),
        num_frames=seen.num_frames,
        fps=footage.fps,
        size=seen.size,
        metrics=[*spoken, *metrics, *(other.metrics if other else [])],
        curves=curves,
        events={"frozen": frozen_frames(seen).tolist(), "jumps": jumps(seen)},
    )


def _curves(seen: Survey, fps: float) -> dict[str, list[float]]:
    first = seen.colours[: max(1, round(fps))].mean(axis=0)
    return {
        "change": [0.0, *seen.changes.tolist()],
        "brightness": seen.thumbs.mean(axis=(1, 2)).tolist(),
        "colour off the first second": colour_curve(seen, first).tolist(),
    }


def _identity(
    question: EvaluationInput, footage: Footage, face: FaceTrack
) -> tuple[list[Metric], Curve | None]:
    if question.identity is None:
        return unavailable_identity(
            "no network was given (--identity mobile_face_net.tflite)"
        ), None
    network = load_recogniser(question.identity)
    portrait = None
    if question.reference is not None:
        picture = np.asarray(load_portrait(question.reference))
        portrait = picture, face_track(Footage.of_frames([picture]), question.face_model)
    return identity(footage, face, portrait, network)


def _spoken(
    question: EvaluationInput, footage: Footage, face: FaceTrack, curves: dict[str, list[float]]
) -> list[Metric]:
    """Measure lip sync: of the mouth that is believed, by SyncNet, and by both ways of seeing a mouth.

    Their curves are added to `curves`.
    """
    source = question.audio or (question.video if footage.has_sound else None)
    voice, reason = None, "the video has no sound and none was given (--audio)"
    if source is not None:
        voice = loudness(source, fps=footage.fps, num_frames=len(curves["change"]))
        curves["loudness"] = voice.tolist()
    both = mouth_select(footage, mouth_of_drawing(footage), face)
    found = _sync(both[0], voice, reason, SYNC, note=why(both))
    found += _by_syncnet(question, footage, face, source)
    for mouth in sorted(both, key=lambda mouth: mouth.way):
        found += _sync(mouth, voice, reason, f"{SYNC} by {mouth.way}")
    for name, mouth in (("mouth", both[0]), (f"mouth by {both[1].way}", both[1])):
        if mouth.opening is not None:
            curves[name] = mouth.opening.tolist()
    return found


def _sync(
    mouth: Mouth, voice: Curve | None, silence: str, group: str, *, note: str = ""
) -> list[Metric]:
    if mouth.opening is None or voice is None:
        return [unavailable(group, "correlation", mouth.reason or silence)]
    return lip_sync(mouth.opening, voice, confidence=mouth.confidence, group=group, note=note)


def _by_syncnet(
    question: EvaluationInput, footage: Footage, face: FaceTrack, source: Path | None
) -> list[Metric]:
    if question.syncnet is None:
        return without_weights()
    network = load_network(question.syncnet)
    return syncnet(footage, face, source, network)
