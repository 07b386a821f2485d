"""The speech encoder: configuration, names, stages, rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcast.errors import CheckpointError
from lipcast.models.speech import (
    SpeechConfig,
    SpeechEncoder,
    interpolate,
    middle_index,
    middle_ratio,
    num_middle_features,
    speech_name,
)
from published_speech import frame_features, resample_middle

FOLDER = Path(__file__).parents[2] / "src" / "lipcast" / "assets" / "tiny" / "wav2vec2-tiny"
JSON = json.loads((FOLDER / "config.json").read_text())
MINI = JSON | {
    "conv_dim": [8] * 7,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "transformers_version": "4.51.3",
}


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(SpeechConfig.from_json(MINI))


def test_published_sizes():
    config = SpeechConfig.from_json(JSON)
    assert (config.stride, config.receptive_field) == (320, 400)
    assert [config.num_features(n) for n in (0, 399, 400, 719, 720, 7680)] == [0, 0, 1, 1, 2, 23]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "hubert"),
        ("do_stable_layer_norm", False),
        ("feat_extract_norm", "group"),
        ("add_adapter", True),
        ("conv_stride", [5, 2, 2, 2, 2, 2, 1]),
    ],
)
def test_other_speech_models_are_refused(key, value):
    with pytest.raises(CheckpointError, match="expected"):
        SpeechConfig.from_json(JSON | {key: value})


def test_names_of_both_spellings(encoder):
    new = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    old = "encoder.pos_conv_embed.conv.weight_"
    assert speech_name(f"wav2vec2.{old}g") == speech_name(f"wav2vec2.{new}0")
    assert speech_name(f"{old}v") == speech_name(f"wav2vec2.{new}1")
    assert speech_name(f"wav2vec2.{new}0") in encoder.state_dict()
    for dropped in ("lm_head.weight", "lm_head.bias", "wav2vec2.masked_spec_embed"):
        assert speech_name(dropped) is None
    unknown = speech_name("wav2vec2.quantizer.codevectors")
    assert unknown is not None
    assert unknown not in encoder.state_dict()


def test_layers_and_their_number(encoder):
    with torch.inference_mode():
        layers = encoder(torch.randn(7680))
    assert layers.shape == (3, 23, 8)


def test_last_layer_norm_is_a_choice_of_the_configuration(encoder):
    raw = SpeechConfig.from_json(MINI | {"lipcast_last_layer_norm": False})
    other = SpeechEncoder(raw)
    other.load_state_dict(encoder.state_dict())
    wave = torch.randn(4000)
    with torch.inference_mode():
        normed, plain = encoder(wave), other(wave)
    assert torch.equal(normed[:-1], plain[:-1])
    norm = torch.nn.functional.layer_norm(plain[-1], (8,))
    assert torch.allclose(normed[-1], norm, atol=1e-5)
    assert not torch.allclose(normed[-1], plain[-1], atol=1e-2)


@pytest.mark.parametrize(
    ("version", "normed"),
    [("4.7.0.dev0", True), ("4.51.3", True), ("5.15.1", True), ("5.16.0", False), (None, True)],
)
def test_last_layer_norm_follows_the_library_that_wrote_the_folder(version, normed):
    raw = {key: value for key, value in MINI.items() if key != "transformers_version"}
    if version is not None:
        raw["transformers_version"] = version
    assert SpeechConfig.from_json(raw).last_layer_norm is normed


@given(st.integers(0, 40), st.integers(1, 12))
def test_local_stage_can_be_cut_anywhere(encoder, first, count):
    wave = torch.linspace(0, 60, 60 * 320 + 80).sin()
    config = encoder.config
    start, length = first * config.stride, (count - 1) * config.stride + config.receptive_field
    with torch.inference_mode():
        whole = encoder.extract(wave)
        part = encoder.extract(wave[start : start + length])
    assert torch.allclose(part, whole[first : first + count], atol=1e-5)


def test_middle_index_is_the_rounded_product():
    frames = torch.arange(10_000)
    assert torch.equal(middle_index(10_000), (frames.double() * 1.2).round().long())
    assert torch.equal(middle_index(12, first=36), middle_index(48)[36:])


def test_positions_far_beyond_any_table():
    assert middle_index(2, first=10**12).tolist() == [12 * 10**11, 12 * 10**11 + 1]


@given(st.integers(2, 400))
def test_resampling_keeps_both_ends(num_features):
    ramp = torch.arange(num_features, dtype=torch.float32)[None, :, None]
    middle = resample_middle(ramp)[0, :, 0]
    assert len(middle) == num_middle_features(num_features)
    steps = torch.arange(len(middle)) * middle_ratio(num_features)
    assert torch.allclose(middle, steps.float(), atol=1e-3)
    if len(middle) > 1:
        assert middle[-1] == num_features - 1


def test_interpolation_is_clamped():
    x = torch.tensor([[[1.0], [3.0]]])
    positions = torch.tensor([-1.0, 0.0, 0.25, 1.0, 7.0], dtype=torch.float64)
    assert interpolate(x, positions)[0, :, 0].tolist() == [1.0, 1.0, 1.5, 3.0, 3.0]


def test_frames_past_the_end():
    middle = torch.arange(1.0, 5.0)[None, :, None]
    assert frame_features(middle, 6)[0, 0].tolist() == [1, 2, 3, 4, 4, 4]
    assert frame_features(middle, 6, pad="zeros")[0, 0].tolist() == [1, 2, 3, 0, 0, 0]
