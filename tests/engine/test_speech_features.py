"""The feature stream: pieces, windows, live statistics, memory, resume.

Differences are relative: RMS of the difference over RMS of the features' own movement, worst layer.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lipcast.engine.speech_features import (
    FILE_WINDOW,
    LIVE_LEAD,
    LIVE_START,
    WHOLE_FILE_S,
    FeatureStream,
    Loudness,
    StreamState,
    Window,
    live_window,
)
from lipcast.models.speech import (
    SpeechConfig,
    SpeechEncoder,
    interpolate,
    middle_index,
    middle_ratio,
    normalise,
    num_middle_features,
)
from lipcast.weights.bundle import load_speech_encoder
from profiles import examples
from published_speech import frame_features, resample_middle

ROOT = Path(__file__).parents[2]
VOICES = sorted((ROOT / "examples").glob("speech_*.wav"))
FRAMES = 12
BLOCK = FRAMES * 640
HUNDRED_MS = 1600
MINI = {
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
MINI_WINDOW = Window(keep=24, left=20, right=12)


@pytest.fixture(scope="module")
def mini() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(SpeechConfig.from_json(MINI))


@pytest.fixture(scope="module")
def tiny() -> SpeechEncoder:
    folder = ROOT / "src" / "lipcast" / "assets" / "tiny" / "wav2vec2-tiny"
    return load_speech_encoder(folder, device=torch.device("cpu"))


def read_voice(path: Path) -> NDArray[np.float32]:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / np.float32(32768)


def noise(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def measured(sound: NDArray[np.float32]) -> dict[str, float]:
    return {"mean": float(sound.mean(dtype=np.float64)), "std": float(sound.std(dtype=np.float64))}


def as_file(sound: NDArray[np.float32]) -> dict[str, float]:
    return measured(sound) | {"num_samples": len(sound)}


def num_blocks(sound: NDArray[np.float32]) -> int:
    return max(1, -(-len(sound) // BLOCK))


def feed(stream: FeatureStream, pieces: list[NDArray[np.float32]], blocks: int) -> Tensor:
    """Push as little as possible, take as early as possible."""
    waiting, taken = list(pieces), []
    while len(taken) < blocks:
        features = stream.take(len(taken))
        if features is not None:
            taken.append(features)
        elif waiting:
            stream.push(waiting.pop(0))
        else:
            stream.finish()
    return torch.cat(taken, dim=-1)


def stream_of(encoder: SpeechEncoder, **options) -> FeatureStream:
    return FeatureStream(encoder, video_frames_per_block=FRAMES, **options)


def pieces_of(sound: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    return [sound[i : i + size] for i in range(0, len(sound), size)]


def all_layers(encoder: SpeechEncoder, sound: NDArray[np.float32]) -> Tensor:
    """The whole sound in one pass, by the pure functions: normalise, then pad, then encode."""
    normal = normalise(torch.from_numpy(sound.copy()), **measured(sound))
    padding = num_blocks(sound) * BLOCK - len(sound)
    with torch.inference_mode():
        return encoder(torch.nn.functional.pad(normal, (0, padding)))


def whole_file(encoder: SpeechEncoder, sound: NDArray[np.float32]) -> Tensor:
    return frame_features(resample_middle(all_layers(encoder, sound)), num_blocks(sound) * FRAMES)


def difference(got: Tensor, expected: Tensor) -> float:
    movement = expected - expected.mean(-1, keepdim=True)
    return float(((got - expected).norm(dim=(1, 2)) / movement.norm(dim=(1, 2))).max())


# A file.


@pytest.mark.parametrize("path", VOICES, ids=lambda p: p.stem)
def test_file_in_pieces_equals_the_whole_file(tiny, path):
    sound = read_voice(path)
    got = feed(stream_of(tiny, **as_file(sound)), pieces_of(sound, HUNDRED_MS), num_blocks(sound))
    assert difference(got, whole_file(tiny, sound)) < 1e-5


@settings(deadline=None, max_examples=examples(30))
@given(st.lists(st.integers(0, 9000), max_size=8), st.booleans())
def test_how_it_is_cut_changes_nothing(mini, cuts, live):
    sound = noise(30_000)
    options = {"window": MINI_WINDOW} if live else as_file(sound)
    pieces = np.split(sound, np.minimum(np.cumsum(cuts, dtype=int), len(sound)))
    cut = feed(stream_of(mini, **options), pieces, num_blocks(sound))
    at_once = feed(stream_of(mini, **options), [sound], num_blocks(sound))
    assert torch.equal(cut, at_once)


@pytest.mark.parametrize("num_samples", [1, 399, 7680, 7681, 15_360])
@pytest.mark.parametrize("live", [False, True])
def test_short_sounds_fill_whole_blocks(mini, num_samples, live):
    sound = noise(num_samples)
    options = measured(sound) if live else as_file(sound)
    got = feed(stream_of(mini, **options), [sound], num_blocks(sound))
    assert got.shape == (3, 8, num_blocks(sound) * FRAMES)
    assert got.isfinite().all()


def test_blocks_of_other_lengths(mini):
    sound = noise(20_000)
    stream = FeatureStream(mini, video_frames_per_block=8, **as_file(sound))
    got = feed(stream, [sound], 4)
    normal = normalise(torch.from_numpy(sound), **measured(sound))
    padded = torch.nn.functional.pad(normal, (0, 4 * 8 * 640 - len(sound)))
    with torch.inference_mode():
        expected = frame_features(resample_middle(mini(padded)), 32)
    assert torch.allclose(got, expected, atol=1e-5)


def test_past_the_end_the_last_feature_stays(mini):
    sound = noise(10_000)
    stream = stream_of(mini, **as_file(sound))
    inside, beyond = feed(stream, [sound], 2), stream.take(2)
    assert beyond is not None
    assert torch.equal(beyond, inside[..., -1:].expand(-1, -1, FRAMES))


def test_long_file_goes_in_windows(tiny):
    sound = np.concatenate([read_voice(path) for path in VOICES] * 3)
    assert len(sound) > WHOLE_FILE_S * 16_000
    stream = stream_of(tiny, **as_file(sound))
    got = feed(stream, pieces_of(sound, 16_000), num_blocks(sound))
    assert 0 < difference(got, whole_file(tiny, sound)) < 0.25


def test_windows_know_the_exact_length(mini):
    """Ratio and last feature are those of the whole file, though it is seen in windows."""
    sound = noise(5 * BLOCK)
    window = Window(keep=24, left=10_000, right=10_000)
    got = feed(stream_of(mini, window=window, **as_file(sound)), [sound], 5)
    assert difference(got, whole_file(mini, sound)) < 1e-5


# Live.


def live_reference(encoder: SpeechEncoder, sound: NDArray[np.float32]) -> Tensor:
    """The whole sound in one pass, at the time ratio of a sound without end."""
    index = middle_index(num_blocks(sound) * FRAMES).double()
    return interpolate(all_layers(encoder, sound), index * 5 / 3 + LIVE_LEAD).transpose(1, 2)


@pytest.mark.parametrize("path", VOICES, ids=lambda p: p.stem)
def test_live_voice_is_near_the_whole_file(tiny, path):
    """Measured: windows 0.18 to 0.20; with running statistics 0.19 to 0.22."""
    sound = read_voice(path)
    pieces, blocks = pieces_of(sound, HUNDRED_MS), num_blocks(sound)
    expected = live_reference(tiny, sound)
    windows = feed(stream_of(tiny, **measured(sound)), pieces, blocks)
    live = feed(stream_of(tiny), pieces, blocks)
    assert difference(windows, expected) < 0.22
    assert difference(live, expected) < 0.25


def test_live_block_waits_for_a_quarter_of_a_second(mini):
    sound, blocks = noise(10 * BLOCK), 8
    for lookahead, late in ((4240, 0), (3919, 1)):
        stream, got = stream_of(mini), 0
        stream.push(sound[:lookahead])
        for pushed in range(blocks):
            stream.push(sound[pushed * BLOCK :][:BLOCK])
            got += stream.take(got) is not None
            assert got == pushed + 1 - late


def test_live_statistics_follow_the_voice(mini):
    stream = stream_of(mini)
    sound = noise(40 * BLOCK) * 5 + 0.25
    feed(stream, pieces_of(sound, BLOCK), 40)
    loudness = stream.state.loudness
    assert loudness.mean == pytest.approx(0.25, rel=0.1)
    assert loudness.variance == pytest.approx(0.25, rel=0.1)


def test_silence_is_not_raised_to_the_level_of_speech(mini):
    stream = stream_of(mini)
    stream.push(noise(2 * BLOCK) * 1e-3)
    assert stream.take(0) is not None
    assert stream.state.loudness.variance**0.5 > 0.03


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.floats(-1, 1))
def test_loudness_is_that_of_all_samples(lengths, offset):
    chunks = [torch.from_numpy(noise(n, seed=i)) + offset for i, n in enumerate(lengths)]
    loudness = Loudness(mean=0.0, variance=0.0)
    for chunk in chunks:
        loudness = loudness.including(chunk)
    heard = torch.cat(chunks).double()
    assert loudness.count == len(heard)
    if len(heard):
        assert loudness.mean == pytest.approx(float(heard.mean()), abs=1e-9)
        assert loudness.variance == pytest.approx(float(heard.var(correction=0)), abs=1e-9)


def test_live_lead_is_the_mean_of_what_files_have():
    """Over whole blocks: half of the lead at the end, since it grows from nothing."""
    leads = []
    for blocks in range(1, 501):
        num_features = 2 * FRAMES * blocks - 1
        end = num_middle_features(num_features) - 1
        leads.append(end * (middle_ratio(num_features) - 5 / 3) / 2)
    assert np.mean(leads) == pytest.approx(LIVE_LEAD, abs=0.01)


# Memory, order, resume.


def held_numbers(state: StreamState) -> int:
    """Numbers in memory, also those behind views."""
    tensors = [*state.pieces, state.local, state.layers]
    return sum(t.untyped_storage().nbytes() // t.itemsize for t in tensors)


@pytest.mark.parametrize("live", [True, False])
def test_memory_does_not_grow(mini, live):
    sound, blocks = noise(20 * BLOCK), 120
    options = {} if live else {"num_samples": blocks * BLOCK} | measured(sound)
    stream = stream_of(mini, window=MINI_WINDOW, **options)
    held, pushed = [], 0
    for block in range(blocks - 2):
        while stream.take(block) is None:
            stream.push(sound[(pushed % 20) * BLOCK :][:BLOCK])
            pushed += 1
        held.append(held_numbers(stream.state))
    assert max(held[60:]) <= max(held[10:60])
    assert max(held) < 6 * BLOCK


@pytest.mark.parametrize("live", [True, False])
def test_resume_goes_on_equally(mini, live):
    sound = noise(6 * BLOCK)
    options = {} if live else as_file(sound)
    options |= {"window": MINI_WINDOW}
    expected = feed(stream_of(mini, **options), pieces_of(sound, 5000), 6)
    stream = stream_of(mini, **options)
    stream.push(sound[: 4 * BLOCK])
    first = [stream.take(0), stream.take(1)]
    saved = stream.snapshot()
    stream.push(sound[: 2 * BLOCK])
    stream.take(2)
    again = stream_of(mini, **options, state=saved)
    again.push(sound[4 * BLOCK :])
    again.finish()
    rest = [again.take(block) for block in range(2, 6)]
    assert torch.equal(torch.cat([*first, *rest], dim=-1), expected)


def test_order_of_calls(mini):
    stream = stream_of(mini)
    with pytest.raises(AssertionError, match="in order"):
        stream.take(1)
    stream.finish()
    with pytest.raises(AssertionError, match="after finish"):
        stream.push(noise(1))


def test_default_windows(mini):
    def window(num_samples: int | None) -> Window:
        stream = stream_of(mini, num_samples=num_samples)
        return stream.window

    assert window(None) == live_window(FRAMES)
    assert window(60 * 16_000) == Window(keep=2 * 1500 - 1, left=0, right=0)
    assert window(60 * 16_000 + 1) == FILE_WINDOW
    assert live_window(FRAMES).keep == 24
    assert LIVE_START.count > 0
