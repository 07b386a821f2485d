"""Resampling: exact lengths, no delay, the same whatever the block sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcast.media.resample import (
    MUX_RATES,
    Resampler,
    TwoTracks,
    mean_of_channels,
    mux_rate,
    resampled_length,
    stereo_weights,
)
from profiles import examples

RATES = st.sampled_from([7919, 8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])


def resample(signal: np.ndarray, rates: tuple[int, int], cuts: list[int]) -> np.ndarray:
    """[channels, n] through a Resampler, cut at the given places."""
    resampler = Resampler(*rates, len(signal))
    blocks = [resampler.push(block) for block in np.split(signal, sorted(cuts), axis=1)]
    return np.concatenate([*blocks, resampler.finish()], axis=1)


@settings(max_examples=examples(60), deadline=None)
@given(
    rates=st.tuples(RATES, st.sampled_from([16_000, 48_000])),
    num_samples=st.integers(0, 3000),
    channels=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_length_and_values_do_not_depend_on_the_blocks(
    rates: tuple[int, int], num_samples: int, channels: int, data: st.DataObject
) -> None:
    noise = np.random.default_rng(num_samples).normal(0, 0.2, (channels, num_samples))
    signal = noise.astype(np.float32)
    cuts = data.draw(st.lists(st.integers(0, num_samples), max_size=5))
    whole, parts = resample(signal, rates, []), resample(signal, rates, cuts)
    assert whole.shape == (channels, resampled_length(num_samples, *rates))
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("from_rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_a_tone_keeps_its_phase_and_level(from_rate: int) -> None:
    t = np.arange(from_rate) / from_rate
    signal = np.sin(2 * np.pi * 440 * t).astype(np.float32)[None]
    out = resample(signal, (from_rate, 16_000), [])[0]
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(out - expected)[100:-100].max() < 1e-5


def test_what_the_lower_rate_cannot_hold_is_removed() -> None:
    t = np.arange(48_000) / 48_000
    signal = np.sin(2 * np.pi * 9500 * t).astype(np.float32)[None]
    out = resample(signal, (48_000, 16_000), [])[0]
    assert np.abs(out)[100:-100].max() < 1e-4


def test_an_equal_rate_changes_nothing() -> None:
    signal = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    np.testing.assert_array_equal(resample(signal, (16_000, 16_000), [3, 900]), signal)


@given(
    num_samples=st.integers(0, 10**9), rate=st.sampled_from([8000, 44_100, 48_000, 96_000, 7919])
)
def test_every_rate_gives_the_same_number_of_video_frames(num_samples: int, rate: int) -> None:
    frames = -(-num_samples * 25 // rate)
    for to_rate in (16_000, 48_000):
        length = resampled_length(num_samples, rate, to_rate)
        assert -(-length * 25 // to_rate) == frames


@pytest.mark.parametrize(
    ("native", "muxed"),
    [(16_000, 16_000), (44_100, 44_100), (48_000, 48_000), (96_000, 48_000), (40_000, 48_000),
     (7350, 48_000), (22_050, 22_050)],
)  # fmt: skip
def test_the_muxed_rate(native: int, muxed: int) -> None:
    assert mux_rate(native) == muxed
    assert all(rate % 25 == 0 for rate in MUX_RATES)


def test_the_mean_of_channels() -> None:
    signal = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    for count in (1, 2, 3, 6):
        mean = mean_of_channels(signal[:count])
        assert mean.shape == (1, 50)
        np.testing.assert_allclose(mean[0], signal[:count].mean(axis=0), atol=1e-6)


def test_surround_keeps_its_sides() -> None:
    weights = stereo_weights(["FL", "FR", "FC", "LFE", "SL", "SR"])
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    left, right = weights
    assert left[0] == left[4] > left[2] > 0
    assert left[1] == left[3] == left[5] == right[0] == right[3] == 0
    np.testing.assert_array_equal(stereo_weights(["NONE"] * 4), np.full((2, 4), 0.25))
    np.testing.assert_array_equal(stereo_weights(["LFE"] * 3).shape, (2, 3))


@settings(max_examples=examples(40), deadline=None)
@given(
    rate=st.sampled_from([8000, 16_000, 24_000, 44_100, 96_000]),
    num_samples=st.integers(0, 20_000),
    most_frames=st.integers(1, 7),
    data=st.data(),
)
def test_two_tracks_stay_in_step(
    rate: int, num_samples: int, most_frames: int, data: st.DataObject
) -> None:
    signal = np.random.default_rng(1).normal(0, 0.1, (1, num_samples)).astype(np.float32)
    tracks, chunks = TwoTracks(rate, 1), []
    for block in np.split(
        signal, sorted(data.draw(st.lists(st.integers(0, num_samples), max_size=4))), axis=1
    ):
        tracks.push(block, block)
        while tracks.num_frames and (chunk := tracks.take(most_frames)):
            chunks.append(chunk)
    tracks.finish()
    while chunk := tracks.take(most_frames):
        chunks.append(chunk)
    per_frame = tracks.sample_rate // 25
    for chunk in chunks[:-1]:
        frames = len(chunk.samples) // per_frame
        assert 1 <= frames <= most_frames
        assert (len(chunk.samples), len(chunk.speech)) == (frames * per_frame, frames * 640)
    assert sum(len(c.samples) for c in chunks) == resampled_length(
        num_samples, rate, tracks.sample_rate
    )
    assert sum(len(c.speech) for c in chunks) == resampled_length(num_samples, rate, 16_000)
