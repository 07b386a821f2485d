"""Case 9 and the embedded model: the text encoder against the reference's hidden states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_helpers import DEFAULT_DIR, GoldenCase

from lipcast.config.models import TextConfig
from lipcast.models.text import TextEncoder, text_name
from lipcast.weights.load import without_memory

TOLERANCE = 1e-5
TINY = Path(__file__).parents[2] / "src" / "lipcast" / "assets" / "tiny"


def build(config: TextConfig, weights: dict[str, torch.Tensor]) -> TextEncoder:
    with without_memory():
        encoder = TextEncoder(config)
    encoder.load_state_dict({text_name(k): v for k, v in weights.items()}, strict=True, assign=True)
    return encoder


@pytest.fixture
def case(golden) -> GoldenCase:
    return golden("case09")


@pytest.fixture
def encoder(case) -> TextEncoder:
    meta, weights = case.meta, case.weights()
    config = TextConfig(
        vocab_size=meta["vocab"],
        dim=meta["dim"],
        dim_attn=meta["dim_attn"],
        dim_ffn=meta["dim_ffn"],
        num_heads=meta["num_heads"],
        num_layers=meta["num_layers"],
        num_buckets=meta["num_buckets"],
    )
    return build(config, weights)


def test_rows_of_a_batch_equal_each_prompt_alone(case, encoder):
    """The reference pads and masks; without padding the true rows are the same."""
    ids, mask = case["inputs/batch/ids"], case["inputs/batch/mask"]
    for row, length in enumerate(mask.sum(1).tolist()):
        got = encoder(ids[row : row + 1, :length])[0]
        assert (got - case["outputs/batch/hidden"][row, :length]).abs().max() < TOLERANCE
        assert (got - case[f"outputs/batch/trimmed{row}"]).abs().max() < TOLERANCE


def test_long_prompt_uses_the_far_buckets(case, encoder):
    expected = case["outputs/long/hidden"]
    got = encoder(case["inputs/long/ids"][:, : expected.shape[1]])
    assert (got - expected).abs().max() < TOLERANCE


def test_embedded_model():
    tiny = GoldenCase(DEFAULT_DIR / "tiny_golden.safetensors")
    weights = GoldenCase(TINY / "models_t5_umt5-tiny-enc.safetensors").under("")
    config = TextConfig.from_json(json.loads((TINY / "t5_config.json").read_text()))
    encoder = build(config, {name: tensor.float() for name, tensor in weights.items()})
    ids = encoder.token_ids(tiny.meta["prompt"])
    context = encoder.encode(tiny.meta["prompt"])
    padding = config.text_len - len(ids)
    assert tiny["prompt_ids"][0].tolist() == ids + [0] * padding
    expected = tiny["context"][0]
    assert (context - expected[: len(ids)]).abs().max() < TOLERANCE * expected.abs().max()
    assert not expected[len(ids) :].any()
