"""Conversions between the values of ComfyUI's wires and those of the library.

IMAGE: a float tensor [num_pictures, height, width, channels] of 0..1. AUDIO: a dict of `waveform`, a float
tensor [num_sounds, channels, samples] of -1..1, and `sample_rate` in Hz.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipcast.errors import InputError


def to_portrait(image_BHWC: torch.Tensor) -> NDArray[np.uint8]:
    """Return the first picture of a batch, [height, width, channels]. Raises InputError for no picture."""
    if image_BHWC.ndim != 4 or 0 in image_BHWC.shape:
        raise InputError(
            f"the IMAGE input holds no picture (its shape is {list(image_BHWC.shape)}); connect a portrait"
        )
    picture_HWC = image_BHWC[0].detach().cpu().float()
    if picture_HWC.shape[-1] == 1:
        picture_HWC = picture_HWC.expand(-1, -1, 3)
    levels: NDArray[np.uint8] = (picture_HWC * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return levels


def to_sound(audio: Mapping[str, Any]) -> bytes:
    """Return the first sound of a batch as a WAV file with 32 bits a sample.

    Raises InputError where it has no samples, or some that are not finite.
    """
    waveform_BCT: torch.Tensor = audio["waveform"]
    if waveform_BCT.ndim != 3 or 0 in waveform_BCT.shape:
        raise InputError(
            f"the AUDIO input holds no sound (its shape is {list(waveform_BCT.shape)}); connect a voice"
        )
    samples_CT = waveform_BCT[0].detach().cpu().double()
    if not bool(samples_CT.isfinite().all()):
        raise InputError("the AUDIO input holds NaN or infinity; look at the node that makes it")
    codes_TC = (samples_CT.T.clamp(-1, 1) * (2**31 - 1)).round().to(torch.int32).contiguous()
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(codes_TC.shape[1])
        file.setsampwidth(4)
        file.setframerate(int(audio["sample_rate"]))
        file.writeframes(codes_TC.numpy().astype("<i4").tobytes())
    return content.getvalue()


def to_batch(pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Return RGB pictures, arrays [num_pictures, height, width, 3], as one IMAGE."""
    num_pictures = sum(len(part) for part in pictures)
    batch = torch.empty((num_pictures, *pictures[0].shape[1:]))
    at = 0
    for part in pictures:
        torch.div(torch.from_numpy(part), 255, out=batch[at : at + len(part)])
        at += len(part)
    return batch
