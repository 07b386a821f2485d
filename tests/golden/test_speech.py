"""Case 8 and the embedded model's voice: the way from the waveform to one feature per frame."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_helpers import DEFAULT_DIR, GoldenCase

from lipcast.models.speech import (
    SpeechConfig,
    SpeechEncoder,
    middle_index,
    normalise,
    speech_name,
)
from lipcast.weights.load import without_memory
from published_speech import frame_features, num_published_clips, resample_middle

TOLERANCE = 2e-4
TINY = Path(__file__).parents[2] / "src" / "lipcast" / "assets" / "tiny" / "wav2vec2-tiny"


def build(folder: Path, **changes: object) -> SpeechEncoder:
    config = SpeechConfig.from_json(json.loads((folder / "config.json").read_text()))
    with without_memory():
        encoder = SpeechEncoder(replace(config, **changes))
    weights = GoldenCase(folder / "model.safetensors").under("")
    named = {speech_name(name): tensor for name, tensor in weights.items()}
    named.pop(None, None)
    encoder.load_state_dict(named, strict=True, assign=True)
    return encoder


@pytest.fixture
def case(golden) -> GoldenCase:
    return golden("case08")


def buckets(case: GoldenCase) -> dict[int, dict[str, torch.Tensor]]:
    """The stored cuts by frames per clip: "outputs/bucket48/indices" and so on."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in case.under("outputs/bucket").items():
        frames, _, kind = name.partition("/")
        found.setdefault(int(frames), {})[kind] = tensor
    return found


def test_normalised_waveform(case):
    wave = case["inputs/waveform_16k"]
    exact = wave.double()
    got = normalise(wave, mean=float(exact.mean()), std=float(exact.std(correction=0)))
    assert (got - case["mid/input_values_normalised"][0]).abs().max() < 1e-6


def test_all_layers_as_transformers_4_gave_them(case):
    """Pins the last layer to be after the final LayerNorm, whatever version is installed."""
    encoder = build(case.path.parent / "wav2vec2_tiny")
    layers = encoder(case["mid/input_values_normalised"][0])
    assert layers.shape == case["mid/hidden_states_50hz"].shape
    assert (layers - case["mid/hidden_states_50hz"]).abs().max() < TOLERANCE
    assert (layers[-1] - case["mid/last_hidden_state"]).abs().max() < TOLERANCE


def test_interpolation(case):
    got = resample_middle(case["inputs/interp/x"])
    assert (got - case["outputs/interp/50_to_30"]).abs().max() < 1e-5
    got = resample_middle(case["mid/hidden_states_50hz"])
    assert (got - case["outputs/features_30hz"]).abs().max() < TOLERANCE


def test_frame_indices(case):
    assert torch.equal(middle_index(1200), case["outputs/sample_indices_1200"])
    last = case["outputs/features_30hz"].shape[1] - 1
    for cut in buckets(case).values():
        inside = cut["indices"] <= last
        assert torch.equal(middle_index(len(inside))[inside], cut["indices"][inside])


def test_frames_of_clips(case):
    features = case["outputs/features_30hz"]
    for frames_per_clip, cut in buckets(case).items():
        clips = num_published_clips(features.shape[1], frames_per_clip)
        assert clips == int(cut["num_clips"])
        got = frame_features(features, clips * frames_per_clip, pad="zeros")
        assert torch.equal(got, cut["audio_emb"][0])


def test_clip_counts(case):
    table = case["outputs/clip_count_table"].tolist()
    assert [num_published_clips(t, frames) for t, frames, *_ in table] == [row[2] for row in table]


@pytest.mark.skipif(importlib.util.find_spec("soxr") is None, reason="needs soxr")
def test_resampling_as_librosa(case):
    import soxr

    stereo = case["inputs/stereo_44100"].numpy()
    got = torch.from_numpy(soxr.resample(stereo.mean(1), 44_100, 16_000, quality="HQ"))
    assert (got - case["outputs/librosa_resampled_16k"]).abs().max() < 1e-5


def test_embedded_model():
    """Its training took the last layer before the final LayerNorm, and zeros past the end."""
    tiny = GoldenCase(DEFAULT_DIR / "tiny_golden.safetensors")
    expected = tiny["audio_feats_25fps_all"][0]
    layers = build(TINY)(tiny["wave_normalised_padded"])
    got = frame_features(resample_middle(layers), expected.shape[-1], pad="zeros")
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
