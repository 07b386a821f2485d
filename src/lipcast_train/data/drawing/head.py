"""Where the head is in each frame: coordinates that move with it.

Shapes: N frames. Coordinates of the head: its middle is the origin, the face is 1 wide to each side, y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcast_train.data.drawing.canvas import Canvas, Colour, colour
from lipcast_train.data.drawing.person import Person, Rgb
from lipcast_train.data.movement import Movement

_BODY_SHARE = 0.3
"""How far the shoulders go along when the head moves."""
_SLACK = 0.05
_MAX_DEPTH = 0.16
"""How far the part nearest to the viewer goes for a turn of 1."""


@dataclass(frozen=True, slots=True)
class Head:
    """A person in so many poses."""

    person: Person
    pose: dict[str, Tensor]
    """Curves of a `Movement` by name, [N, 1, 1] each."""
    reach: tuple[float, float, float]
    """Largest movement to a side, up or down, turns included, and in roll."""
    device: torch.device

    @classmethod
    def of(cls, person: Person, movement: Movement, *, device: torch.device | str = "cpu") -> Head:
        """Return a head for every frame of a movement."""
        curves = movement.curves()
        pose = {
            name.removesuffix("_T"): torch.from_numpy(np.asarray(curve, np.float32))
            .to(device)
            .view(-1, 1, 1)
            for name, curve in curves.items()
        }
        far = {name: float(np.abs(curve).max()) for name, curve in curves.items()}
        across = far["shift_x_T"] + _MAX_DEPTH * far["yaw_T"] + _SLACK
        down = far["shift_y_T"] + _MAX_DEPTH * far["pitch_T"] + _SLACK
        return cls(person, pose, (across, down, far["roll_T"]), torch.device(device))

    def __len__(self) -> int:
        return len(self.pose["opening"])

    def at(self, canvas: Canvas, depth: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the head's coordinates of the pixels, [N, H, W]; what is deep turns less."""
        face, pose = self.person.face, self.pose
        x = (canvas.x_W - face.centre[0]) / face.head - pose["shift_x"]
        y = (canvas.y_H1 - face.centre[1]) / face.head - pose["shift_y"]
        # The neck is what a head tilts about.
        y = y - 1.2
        cosine, sine = pose["roll"].cos(), pose["roll"].sin()
        x, y = x * cosine + y * sine, y * cosine - x * sine
        return x - pose["yaw"] * depth, y + 1.2 - pose["pitch"] * depth

    def body_at(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Return the coordinates that the shoulders rest in."""
        face, pose = self.person.face, self.pose
        x = (canvas.x_W - face.centre[0]) / face.head - _BODY_SHARE * pose["shift_x"]
        y = (canvas.y_H1 - face.centre[1]) / face.head - _BODY_SHARE * pose["shift_y"]
        return torch.broadcast_tensors(x, y)[0], torch.broadcast_tensors(x, y)[1]

    def window(
        self, canvas: Canvas, left: float, top: float, right: float, bottom: float
    ) -> Canvas:
        """Return the part of the canvas that holds a box of the head in every frame."""
        return canvas.window(*self.place(left, top, right, bottom))

    def place(
        self, left: float, top: float, right: float, bottom: float
    ) -> tuple[float, float, float, float]:
        """Return a box of the head in the canvas's coordinates, with room for its movement."""
        face = self.person.face
        across, down, roll = self.reach
        lever = max(abs(top - 1.2), abs(bottom - 1.2))
        dx = across + roll * lever
        dy = down + roll * max(abs(left), abs(right))
        return (
            face.centre[0] + face.head * (left - dx),
            face.centre[1] + face.head * (top - dy),
            face.centre[0] + face.head * (right + dx),
            face.centre[1] + face.head * (bottom + dy),
        )

    def colour(self, rgb: Rgb, factor: float = 1.0) -> Colour:
        """Return a colour, made darker or lighter."""
        red, green, blue = (min(1.0, channel * factor) for channel in rgb)
        return colour(red, green, blue, device=self.device)

    def shadow(self, rgb: Rgb, share: float = 1.0) -> Colour:
        """Return the colour in shadow: darker, and warmer than a mere factor would make it."""
        tint = (1 - 0.34 * share, 1 - 0.46 * share, 1 - 0.48 * share)
        return colour(*(c * t for c, t in zip(rgb, tint, strict=True)), device=self.device)

    def noise(self, size: int, salt: int) -> Tensor:
        """Return a pattern of this person, [size, size], normal."""
        rng = np.random.default_rng((self.person.noise_seed, salt))
        return torch.from_numpy(rng.standard_normal((size, size), np.float32)).to(self.device)
