"""How a camera sees the picture: the colour of the light, blur, dark corners and grain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lipcast_train.data.drawing.canvas import fade
from lipcast_train.data.drawing.head import Head


def photographed(rgb_N3HW: Tensor, head: Head, *, first_frame: int = 0) -> Tensor:
    """Return the pictures as the person's camera sees them: colour of the light, blur, edges, grain."""
    finish = head.person.finish
    warmth = torch.tensor([1 + finish.warmth, 1.0, 1 - finish.warmth], device=rgb_N3HW.device)
    rgb = rgb_N3HW * warmth.view(3, 1, 1)
    side = rgb.shape[-1]
    if finish.blur:
        rgb = _blurred(rgb, finish.blur * side / 256)
    if finish.vignette:
        steps = torch.linspace(-1, 1, side, device=rgb.device)
        far = steps.square() + steps[:, None].square()
        rgb = rgb * (1 - 0.5 * finish.vignette * fade(far, 0.6, 2.0))
    if finish.grain:
        rgb = rgb + finish.grain * _grain(head, rgb, first_frame)
    return rgb.clamp(0, 1)


def _blurred(rgb: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-2.0, 3.0, device=rgb.device)
    kernel = torch.exp(-(taps / max(sigma, 0.2)).square() / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 5)
    rgb = conv2d(pad(rgb, (2, 2, 0, 0), mode="replicate"), kernel, groups=3)
    return conv2d(pad(rgb, (0, 0, 2, 2), mode="replicate"), kernel.transpose(2, 3), groups=3)


def _grain(head: Head, rgb: Tensor, first_frame: int) -> Tensor:
    """Return noise that differs from frame to frame: one pattern, shifted by a lot of each frame."""
    side = rgb.shape[-1]
    pattern = head.noise(side, 17)
    rng = np.random.default_rng((head.person.noise_seed, 18))
    shifts = rng.integers(side, size=(first_frame + len(rgb), 2))[first_frame:].tolist()
    return torch.stack([pattern.roll(shift, dims=(0, 1)) for shift in shifts]).unsqueeze(1)
