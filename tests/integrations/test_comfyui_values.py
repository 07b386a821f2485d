"""Values of ComfyUI become a portrait, a sound and pictures; nothing is lost but rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcast.errors import InputError
from lipcast.integrations.comfyui_values import to_batch, to_portrait, to_sound
from lipcast.media.audio import open_audio


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_of_a_picture_come_back(channels: int, dtype: torch.dtype) -> None:
    levels = torch.randint(0, 256, (2, 6, 5, channels), generator=torch.Generator().manual_seed(0))
    portrait = np.asarray(to_portrait((levels / 255).to(dtype)))
    expected = levels[0].expand(-1, -1, 3) if channels == 1 else levels[0]
    assert portrait.shape[-1] == max(3, channels)
    assert np.abs(portrait.astype(int) - expected.numpy()).max() <= (
        0 if dtype == torch.float32 else 1
    )


def test_values_beyond_the_range_are_clipped() -> None:
    portrait = np.asarray(to_portrait(torch.tensor([[[[-0.5, 1.5, 0.5]]]])))
    assert portrait.tolist() == [[[0, 255, 128]]]


@given(
    num_channels=st.integers(1, 2),
    num_samples=st.integers(1, 3000),
    rate=st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000]),
)
def test_a_sound_keeps_its_rate_and_length(num_channels: int, num_samples: int, rate: int) -> None:
    waveform = torch.rand((3, num_channels, num_samples)) - 0.5
    opened = open_audio(to_sound({"waveform": waveform, "sample_rate": rate}))
    assert opened.duration_s == pytest.approx(num_samples / rate)
    assert opened.num_channels == num_channels


@pytest.mark.parametrize(
    "shape", [(0, 4, 4, 3), (1, 0, 4, 3), (4, 4, 3)], ids=["no picture", "no rows", "no batch"]
)
def test_an_empty_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="connect a portrait"):
        to_portrait(torch.zeros(shape))


def test_a_sound_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(InputError, match="connect a voice"):
        to_sound({"waveform": torch.zeros((1, 2, 0)), "sample_rate": 16_000})
    with pytest.raises(InputError, match="NaN or infinity"):
        to_sound({"waveform": torch.full((1, 1, 10), torch.nan), "sample_rate": 16_000})


def test_pictures_become_one_batch() -> None:
    parts = [np.full((n, 2, 3, 3), n * 50, np.uint8) for n in (1, 2)]
    batch = to_batch(parts)
    assert batch.shape == (3, 2, 3, 3) and batch.dtype == torch.float32
    assert (batch * 255).round().to(torch.uint8).numpy().tolist() == np.concatenate(parts).tolist()
