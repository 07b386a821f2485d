"""Skin, ears, nose and cheeks."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcast_train.data.drawing.canvas import Canvas, blob, ellipse, fade, inside, merged, texture
from lipcast_train.data.drawing.head import Head

_EAR = 0.16, 0.27
COVERING = frozenset({"scarf", "bob", "fringe", "long", "wavy", "afro"})
"""Hair that hides the ears."""


def face_shape(head: Head, x: Tensor, y: Tensor) -> Tensor:
    """Return the outline of skull and jaw; the chin goes down as the mouth opens."""
    face = head.person.face
    skull = ellipse(x, y + 0.26, 0.99, 1.04)
    chin = face.chin + 0.24 * head.pose["opening"]
    across, down = (x / (face.jaw + 0.14)).abs(), ((y - 0.30) / (chin - 0.30)).abs()
    jaw = (across.pow(2.35) + down.pow(2.35)).clamp_min(1e-9).pow(1 / 2.35) - 1
    return merged(skull, jaw, 0.28)


def draw_neck(canvas: Canvas, head: Head) -> None:
    """Draw the neck, and the shadow that the chin throws on it."""
    area = head.window(canvas, -1.0, 0.6, 1.0, 2.3)
    x, y = head.body_at(area)
    width = 0.50 + 0.16 * fade(y, 1.2, 1.9)
    neck = torch.maximum(x.abs() - width, 0.5 - y)
    area.paint(head.colour(head.person.skin, 0.94), inside(neck))
    hx, hy = head.at(area)
    drop = face_shape(head, hx + 0.10 * head.person.finish.light[0], hy - 0.26)
    area.paint(head.shadow(head.person.skin, 0.85), inside(neck) * fade(drop, 0.06, -0.16) * 0.85)


def draw_ears(canvas: Canvas, head: Head) -> None:
    """Draw both ears and what hangs on them."""
    if head.person.hair in COVERING:
        return
    for side in (-1.0, 1.0):
        middle = side * 0.99
        area = head.window(canvas, middle - 0.25, -0.35, middle + 0.25, 0.65)
        x, y = head.at(area, -0.06)
        x = (x - middle) * side
        ear = ellipse(x + 0.12 * (y - 0.08), y - 0.08, *_EAR)
        area.paint(head.colour(head.person.skin, 0.95), inside(ear))
        inner = ellipse(x - 0.02 + 0.12 * (y - 0.08), y - 0.06, 0.09, 0.18)
        area.paint(head.shadow(head.person.skin, 0.75), inside(ear) * fade(inner, 0.35, -0.4) * 0.6)
        if head.person.earrings:
            area.paint(
                head.colour((0.90, 0.74, 0.36)), inside(ellipse(x + 0.02, y - 0.40, 0.055, 0.055))
            )
            area.paint(
                head.colour((1.0, 0.95, 0.80)), inside(ellipse(x + 0.03, y - 0.385, 0.018, 0.018))
            )


def draw_face(canvas: Canvas, head: Head) -> None:
    """Draw the face without its features."""
    area = head.window(canvas, -1.05, -1.35, 1.05, 1.5)
    x, y = head.at(area)
    person = head.person
    mask = inside(face_shape(head, x, y))
    area.paint(head.colour(person.skin), mask)
    light_x, light_y, strength = person.finish.light
    turned_x, turned_y = x - 0.25 * head.pose["yaw"], y - 0.25 * head.pose["pitch"]
    lit = (light_x * turned_x + light_y * 0.75 * (turned_y - 0.05)) / 1.05
    area.paint(head.shadow(person.skin), mask * fade(-lit, 0.05, 1.15) * min(0.9, 0.55 * strength))
    area.paint(
        head.colour(person.skin, 1.14), mask * fade(lit, 0.1, 1.1) * min(0.8, 0.5 * strength)
    )
    rim = fade(x.abs(), 0.62, 1.05) * (1 - fade(y, 0.9, 1.2))
    area.paint(head.shadow(person.skin, 0.7), mask * rim * 0.35)
    _draw_cheeks(area, head, mask)
    if person.finish.skin_texture:
        _draw_pores(area, head, x, y, mask)


def _draw_cheeks(area: Canvas, head: Head, mask: Tensor) -> None:
    person, face = head.person, head.person.face
    x, y = head.at(area, 0.10)
    lift = 0.08 * head.pose["corners"].clamp_min(0)
    cheek = blob(x.abs() - 0.58, y - 0.42 + lift, 0.26, 0.20)
    rosy = (min(1, person.skin[0] * 1.02), person.skin[1] * 0.76, person.skin[2] * 0.74)
    area.paint(head.colour(rosy), mask * cheek * (0.25 + 0.5 * face.blush))
    apple = blob(x.abs() - 0.52, y - 0.30 + lift, 0.17, 0.10)
    area.paint(
        head.colour(person.skin, 1.15),
        mask * apple * (0.30 + 0.25 * head.pose["corners"].clamp_min(0)),
    )
    socket = blob(x.abs() - face.eye_spread, y - face.eye_y + 0.06, 0.30, 0.19)
    area.paint(head.shadow(person.skin, 0.8), mask * socket * 0.30)
    under_lip = blob(x, y - face.mouth_y - 0.27 - 0.38 * head.pose["opening"], 0.24, 0.06)
    area.paint(head.shadow(person.skin, 0.9), mask * under_lip * 0.42)
    chin = blob(x, y - face.chin + 0.17 - 0.24 * head.pose["opening"], 0.22, 0.09)
    area.paint(head.colour(person.skin, 1.10), mask * chin * 0.35)
    if face.freckles:
        _draw_freckles(area, head, x, y, mask)


def _draw_freckles(area: Canvas, head: Head, x: Tensor, y: Tensor, mask: Tensor) -> None:
    spots = texture(head.noise(64, 3), x, y, 2.4)
    where = blob(x, y - 0.30, 0.75, 0.26)
    area.paint(
        head.shadow(head.person.skin, 1.0),
        mask * where * fade(spots, 1.0, 1.6) * 0.7 * head.person.face.freckles,
    )


def _draw_pores(area: Canvas, head: Head, x: Tensor, y: Tensor, mask: Tensor) -> None:
    fine = texture(head.noise(192, 4), x, y, 2.0)
    patchy = texture(head.noise(12, 5), x, y, 1.6)
    amount = head.person.finish.skin_texture
    area.shade(1 + mask * amount * (0.016 * fine + 0.030 * patchy))


def draw_nose(canvas: Canvas, head: Head) -> None:
    """Draw the nose: a lit ridge, wings, nostrils, and the shadow on the far side of the light."""
    person, face = head.person, head.person.face
    area = head.window(canvas, -0.45, -0.25, 0.45, face.nose_y + 0.2)
    x, y = head.at(area, 0.16)
    y = y - face.nose_y
    away = -1.0 if person.finish.light[0] > 0 else 1.0
    dark, deep = head.shadow(person.skin, 0.9), head.shadow(person.skin, 1.45)
    width = face.nose_width
    ridge = fade(y, -0.52, -0.10) * fade(y, 0.06, -0.04)
    area.paint(dark, blob(x - away * 0.11, y * 0, 0.075, 1.0) * ridge * 0.34)
    area.paint(
        head.colour(person.skin, 1.16), blob(x + away * 0.015, y * 0, 0.05, 1.0) * ridge * 0.5
    )
    tip = ellipse(x, y + 0.01, width * 0.62, 0.105)
    area.paint(head.colour(person.skin, 1.06), fade(tip, 0.25, -0.6) * 0.45)
    wings = ellipse(x.abs() - width * 0.74, y - 0.005, width * 0.42, 0.072)
    edge = (1 - (wings.abs() / 0.30).clamp(0, 1)) * fade(x.abs(), width * 0.70, width * 1.0)
    area.paint(dark, edge * 0.8)
    base = (1 - (tip.abs() / 0.22).clamp(0, 1)) * fade(y, 0.02, 0.09)
    area.paint(dark, base * 0.75)
    nostrils = ellipse(
        x.abs() - width * 0.48, y - 0.055 + 0.10 * (x.abs() - width * 0.48), width * 0.26, 0.026
    )
    area.paint(deep, inside(nostrils) * 0.72)
    area.paint(
        head.colour((1.0, 0.98, 0.95)), blob(x + away * 0.035, y + 0.055, 0.042, 0.034) * 0.42
    )
    philtrum = blob(x, y - 0.19, 0.035, 0.075)
    area.paint(dark, philtrum * 0.28)
