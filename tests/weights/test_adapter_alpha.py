"""Alpha is found wherever trainers write it, and follows peft's patterns and rsLoRA."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

from lipcast.errors import CheckpointError
from lipcast.weights.source import TensorSource

from .trainers import (
    LAYERS,
    SPELLINGS,
    adapter,
    assert_merged,
    by_definition,
    factors,
    merged,
    write,
)

HOW_ALPHA_IS_SAID: dict[str, tuple[dict[str, str] | None, dict[str, Any] | None, float]] = {
    "nobody": (None, None, 1.0),
    "diffusers": (
        {"lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 2}'}, None, 0.5,
    ),
    "diffusers, nested": (
        {"lora_adapter_metadata": '{"transformer": {"r": 4, "lora_alpha": 2}}'}, None, 0.5,
    ),
    "diffusers, rank-stabilised": (
        {"lora_adapter_metadata": '{"transformer.lora_alpha": 3, "transformer.use_rslora": true}'},
        None, 1.5,
    ),
    "SimpleTuner": ({"transformer.lora_alpha": "2", "transformer.r": "4"}, None, 0.5),
    "kohya": ({"ss_network_alpha": "2.0", "ss_network_dim": "4"}, None, 0.5),
    "kohya that does not know": ({"ss_network_alpha": "None"}, None, 1.0),
    "other encoders do not count": ({"text_encoder.lora_alpha": "64"}, None, 1.0),
    "peft": (None, {"r": 4, "lora_alpha": 6}, 1.5),
    "peft, rank-stabilised": (None, {"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
    "peft without alpha": (None, {"r": 4, "lora_alpha": None}, 1.0),
    "of another adapter": (None, {"r": 16, "lora_alpha": 64}, 1.0),
    "metadata before configuration": ({"lora_alpha": "2"}, {"r": 4, "lora_alpha": 64}, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("how", HOW_ALPHA_IS_SAID)
def test_alpha_is_found_wherever_trainers_write_it(
    original: Path, base: TensorSource, tmp_path: Path, how: str
) -> None:
    metadata, config, scale = HOW_ALPHA_IS_SAID[how]
    path = write(tmp_path / "style.safetensors", adapter(base, SPELLINGS["peft"]), metadata)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert_merged(base, merged(original, path), scale)


def test_patterns_of_peft_give_each_layer_its_alpha(
    original: Path, base: TensorSource, tmp_path: Path
) -> None:
    """The first pattern that matches the end of a layer's own name decides."""
    config = {
        "r": 4,
        "lora_alpha": 4,
        "alpha_pattern": {"self_attn.q": 8, r"blocks\.\d+\.ffn\.\d": 12, "ffn.2": 99, "attn.k": 77},
    }
    path = write(tmp_path / "style.safetensors", adapter(base, SPELLINGS["peft"]))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    changed = {"blocks.0.self_attn.q": 2.0, "blocks.0.ffn.0": 3.0, "blocks.2.ffn.2": 3.0}
    assert_merged(
        base, merged(original, path), {layer: changed.get(layer, 1.0) for layer in LAYERS}
    )


@pytest.mark.parametrize("use_rslora", [False, True])
def test_patterns_of_ranks_follow_the_factors(
    original: Path, base: TensorSource, tmp_path: Path, use_rslora: bool
) -> None:
    config = {"r": 8, "lora_alpha": 8, "rank_pattern": {"k": 2}, "use_rslora": use_rslora}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    ranks = {"blocks.0.self_attn.q": 8, "blocks.1.cross_attn.k": 2}
    tensors = {}
    for layer, rank in ranks.items():
        keys, pair = SPELLINGS["peft"](layer), factors(base, layer, rank)
        tensors |= dict(zip(keys, pair, strict=False))
    found = merged(original, write(tmp_path / "style.safetensors", tensors))
    for layer, rank in ranks.items():
        scale = 8 / (sqrt(rank) if use_rslora else rank)
        wanted = by_definition(base, layer, scale, rank)
        torch.testing.assert_close(found.read(f"{layer}.weight"), wanted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "this is a DoRA adapter"),
        ({"peft_type": "LOHA"}, "of the kind LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "started with pissa_niter_4.*plain LoRA"),
        ({"lora_alpha": "big"}, "expected a number for lora_alpha, got 'big'"),
        ({"lora_alpha": float("nan")}, "expected a number for lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "is no regular expression"),
        ({"alpha_pattern": {"q": "x"}}, "expected a number for alpha_pattern q"),
        ({"alpha_pattern": [1]}, "expected alpha_pattern as an object"),
        ({"lora_alpha": 6.8e38}, "times its strength; correct its alpha"),
        ([], "expected a JSON object, got list"),
        ("{", r"adapter_config\.json: .*cannot be read"),
        ("[" * 100_000, r"adapter_config\.json: .*cannot be read"),
    ],
)
def test_configurations_that_cannot_be_followed(
    original: Path, base: TensorSource, tmp_path: Path, config: object, said: str
) -> None:
    path = write(tmp_path / "style.safetensors", adapter(base, SPELLINGS["peft"]))
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        merged(original, path)
