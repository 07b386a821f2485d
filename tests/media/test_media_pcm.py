"""Live PCM: the same as a file, as soon as a frame is whole, from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_helpers import drain, joined, wav

from lipcast.errors import CancelledError, InputError, UsageError
from lipcast.media.audio import AudioFile, PcmSource
from profiles import examples


@settings(max_examples=examples(30), deadline=None)
@given(
    rate=st.sampled_from([16_000, 44_100, 96_000]),
    dtype=st.sampled_from(["int16", "float32", "float64"]),
    data=st.data(),
)
def test_pushed_pieces_equal_the_whole(rate: int, dtype: str, data: st.DataObject) -> None:
    signal = np.random.default_rng(0).normal(0, 3000, (5000, 2)).astype(np.int16)
    pushed = signal if dtype == "int16" else (signal / 32768).astype(dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, 5000), max_size=6)))
    results = []
    for pieces in ([pushed], np.split(pushed, cuts)):
        source = PcmSource(rate, num_channels=2)
        for piece in pieces:
            source.push(piece)
        source.finish()
        results.append(joined(source))
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_array_equal(parts, whole)


def test_live_sound_equals_the_file(tmp_path: Path) -> None:
    signal = np.random.default_rng(0).normal(0, 3000, 40_000).astype(np.int16)
    file = joined(AudioFile(wav(signal, tmp_path / "a.wav")))
    source = PcmSource(16_000)
    for piece in np.array_split(signal, 9):
        source.push(piece)
    source.finish()
    for live, stored in zip(joined(source), file, strict=True):
        np.testing.assert_array_equal(live, stored)


def test_live_sound_comes_as_soon_as_a_frame_is_whole() -> None:
    source = PcmSource(16_000)
    source.push(np.zeros(639, np.int16))
    assert not source.ready()
    source.push(np.zeros(1, np.int16))
    assert source.ready()
    chunk = source.read()
    assert chunk is not None
    assert (len(chunk.samples), len(chunk.speech)) == (640, 640)
    source.push(np.zeros(100, np.int16))
    assert not source.ready()
    source.finish()
    source.finish()
    assert source.ready()
    rest = source.read()
    assert rest is not None
    assert len(rest.samples) == 100
    assert source.read() is None
    assert source.num_samples is None


def test_the_callers_array_may_be_used_again() -> None:
    source, buffer = PcmSource(16_000), np.full(640, 0.5, np.float32)
    source.push(buffer)
    buffer[:] = 0
    chunk = source.read()
    assert chunk is not None
    assert (chunk.samples == 0.5).all()


@pytest.mark.parametrize(
    ("pushed", "num_channels", "expected"),
    [
        (np.array([[0.2, 0.4, 0.9]]), 1, [[0.5]]),
        (np.array([[0.2, 0.4, 0.9]]), 2, [[0.2, 0.4]]),
        (np.array([0.25]), 2, [[0.25, 0.25]]),
    ],
)
def test_channels_are_mapped(
    pushed: np.ndarray, num_channels: int, expected: list[list[float]]
) -> None:
    source = PcmSource(16_000, num_channels=num_channels)
    source.push(pushed)
    source.finish()
    samples, speech = joined(source)
    np.testing.assert_allclose(samples, expected, atol=1e-6)
    np.testing.assert_allclose(speech, pushed.mean(), atol=1e-6)


@pytest.mark.parametrize(
    "samples",
    [np.array([0.0, np.nan]), np.zeros(4, np.int32), np.zeros((2, 2, 2)), np.zeros((3, 0))],
)
def test_wrong_pcm_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected"):
        PcmSource(16_000).push(samples)


@pytest.mark.parametrize(("rate", "channels"), [(0, 1), (10**6, 1), (16_000, 0), (16_000, 3)])
def test_wrong_formats_are_refused(rate: int, channels: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        PcmSource(rate, num_channels=channels)


def test_pushing_after_the_end_is_refused() -> None:
    source = PcmSource(16_000)
    source.finish()
    with pytest.raises(UsageError, match="after finish"):
        source.push(np.zeros(10))
    source.cancel()
    with pytest.raises(CancelledError):
        source.push(np.zeros(10))


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run in a thread; the result or the exception ends up in the list."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except CancelledError as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_cancel_wakes_a_waiting_reader() -> None:
    source = PcmSource(16_000)
    thread, results = in_thread(source.read)
    source.cancel()
    thread.join(120)
    assert isinstance(results[0], CancelledError)


def test_several_threads_push_and_nothing_is_lost() -> None:
    source = PcmSource(44_100)
    reader, results = in_thread(lambda: drain(source))
    pushers = [in_thread(lambda: [source.push(np.ones(441)) for _ in range(50)]) for _ in range(4)]
    for thread, _ in pushers:
        thread.join(120)
    source.finish()
    reader.join(120)
    chunks = results[0]
    assert isinstance(chunks, list)
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert samples.shape == (4 * 50 * 441, 1)
    assert (samples == 1).all()
