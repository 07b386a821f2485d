"""Words of a prompt that change how a person looks and moves, and prompts made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Expression:
    """What a face does besides speaking; the units are those of a `Movement`."""

    corners: float = 0.0
    brows: float = 0.0
    brow_tilt: float = 0.0
    lids: float = 1.0
    opening: float = 1.0
    """Factor of the mouth's opening."""


EXPRESSIONS = {
    "neutral": Expression(),
    "cheerful": Expression(corners=0.85, brows=0.30, brow_tilt=0.10, lids=0.94),
    "sad": Expression(corners=-0.80, brows=0.10, brow_tilt=1.0, lids=0.78, opening=0.85),
    "surprised": Expression(corners=0.05, brows=1.0, brow_tilt=0.20, lids=1.32, opening=1.10),
    "angry": Expression(corners=-0.45, brows=-0.50, brow_tilt=-1.0, lids=0.88, opening=1.05),
}
MOTIONS = {"calm": 0.35, "": 1.0, "lively": 2.2}
"""How much head, gaze and brows move."""

_PHRASES = {
    "neutral": ("neutral", "a neutral expression", "speaks neutrally", "表情平静"),
    "cheerful": ("a cheerful smile", "cheerful", "smiling happily", "面带微笑"),
    "sad": ("sad", "a sad face", "speaks sadly", "表情悲伤"),
    "surprised": ("surprised", "a surprised look", "speaks with surprise", "表情惊讶"),
    "angry": ("angry", "an angry face", "speaks angrily", "表情愤怒"),
}
_MOTION_PHRASES = {
    "calm": ("calm", "calmly", "hardly moves", "动作平稳"),
    "": ("",),
    "lively": ("lively", "moves a lot", "with lively gestures", "动作活泼"),
}
_SUBJECTS = ("", "", "a person who speaks, ", "a portrait of someone talking to the camera, ")


@dataclass(frozen=True, slots=True)
class Mood:
    """An expression and a motion, and a prompt that asks for them."""

    expression: str
    motion: str
    prompt: str


def mood(rng: np.random.Generator) -> Mood:
    """Return a mood by lot; every pair of words is equally likely."""
    expression, motion = str(rng.choice([*EXPRESSIONS])), str(rng.choice([*MOTIONS]))
    words = [str(rng.choice(_PHRASES[expression])), str(rng.choice(_MOTION_PHRASES[motion]))]
    prompt = str(rng.choice(_SUBJECTS)) + ", ".join(word for word in words if word)
    return Mood(expression, motion, prompt)


def mood_of(prompt: str) -> Mood:
    """Return the mood that a prompt asks for; what no word of it asks for is neutral."""
    return Mood(_found(prompt, _PHRASES, "neutral"), _found(prompt, _MOTION_PHRASES, ""), prompt)


def _found(prompt: str, phrases: Mapping[str, tuple[str, ...]], otherwise: str) -> str:
    words = prompt.lower()
    for name, known in phrases.items():
        if name and any(phrase in words for phrase in (name, *known) if phrase):
            return name
    return otherwise
