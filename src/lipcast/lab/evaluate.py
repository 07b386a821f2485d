"""All metrics of one video, and the curves behind them.

Input: a video; its sound, portrait and another run where there are. Output: `Evaluation`. What cannot
be measured is in it with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from lipcast.lab.joins import joins
from lipcast.lab.metric import Metric, unavailable
from lipcast.lab.motion import frozen_frames, jumps, motion
from lipcast.lab.mouth import mouth_of_drawing
from lipcast.lab.sync import GROUP as SYNC
from lipcast.lab.sync import Curve, lip_sync, loudness

BLOCK_FRAMES = 12


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be evaluated, and with what beside it."""

    video: Path
    audio: Path | None = None
    """None: the video's own sound."""
    reference: Path | None = None
    against: Path | None = None
    face_model: Path | None = None
    pieces: Mapping[str, int] = field(default_factory=lambda: {"block": BLOCK_FRAMES})
    """Frames of a block, a clip, a segment."""


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
        """One metric's value; None where there is none."""
        return next(m.value for m in self.metrics if (m.group, m.name) == (group, name))

    def document(self) -> dict[str, Any]:
        """As plain data."""
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


def evaluate(question: Question) -> Evaluation:
    """Measure everything that can be measured. Raises InputError for files that cannot be read."""
    footage = Footage.of_file(question.video)
    seen = survey(footage)
    portrait = None
    if question.reference is not None:
        portrait = portrait_likeness(question.reference, size=seen.size)
    face = face_track(footage, question.face_model)
    metrics = [*motion(seen, fps=footage.fps), *expression(face)]
    metrics += joins(seen, dict(question.pieces))
    metrics += [*drift(seen, portrait, fps=footage.fps), *flicker(seen)]
    curves = _curves(seen, footage.fps)
    if portrait is not None:
        curves["likeness to the portrait"] = likeness_curve(seen, portrait.thumb).tolist()
    spoken = _spoken(question, footage, face, curves)
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


def _spoken(
    question: Question,
    footage: Footage,
    face: FaceTrack,
    curves: dict[str, list[float]],
) -> list[Metric]:
    """Lip sync by both ways of seeing a mouth; their curves are added to `curves`.

    Both, since the landmark model is as sure of a drawn face as of a photo, and reads its mouth badly
    (correlation with the track that drew it -0.02 to 0.85, against 0.56 to 0.94 by colour and shape).
    """
    source = question.audio or (question.video if footage.has_sound else None)
    voice, reason = None, "the video has no sound and none was given (--audio)"
    if source is not None:
        voice = loudness(source, fps=footage.fps, num_frames=len(curves["change"]))
        curves["loudness"] = voice.tolist()
    drawn = mouth_of_drawing(footage)
    found = _sync(drawn.opening, voice, drawn.confidence, drawn.reason or reason, SYNC)
    no_weights = "its weights are not part of Lipcast, and this version reads none"
    found.append(unavailable(SYNC, "SyncNet confidence", no_weights))
    by_landmarks = f"{SYNC} by landmarks"
    found += _sync(face.opening, voice, face.confidence, face.reason or reason, by_landmarks)
    for name, opening in (("mouth", drawn.opening), ("mouth by landmarks", face.opening)):
        if opening is not None:
            curves[name] = opening.tolist()
    return found


def _sync(
    opening: Curve | None, voice: Curve | None, confidence: float, reason: str, group: str
) -> list[Metric]:
    if opening is None or voice is None:
        return [unavailable(group, "correlation", reason)]
    return lip_sync(opening, voice, confidence=confidence, group=group)
