"""Adapters of every trainer of this family are merged as strongly as the definition says."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipcast.config.precision import StoredPrecision
from lipcast.errors import CheckpointError
from lipcast.weights.adapters import adapters_of
from lipcast.weights.checkpoint import checkpoint_dir, find_checkpoint
from lipcast.weights.lora import LoraSpec
from lipcast.weights.quant import quantise_weight
from lipcast.weights.schemes import SCHEMES
from lipcast.weights.source import TensorSource
from profiles import examples

from .trainers import (
    SPELLINGS,
    adapter,
    assert_merged,
    by_definition,
    factors,
    merged,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_has_the_strength_of_its_definition(
    original: Path, base: TensorSource, tmp_path: Path, name: str
) -> None:
    tensors = adapter(base, SPELLINGS[name], alpha=2.0)
    found = merged(original, write(tmp_path / "style.safetensors", tensors))
    assert_merged(base, found, 0.5)
    untouched = "blocks.1.self_attn.q.weight"
    assert torch.equal(found.read(untouched), base.read(untouched))


RANKS, ALPHAS = st.sampled_from([1, 2, 8, 16]), st.floats(0.25, 64, width=32)


@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(sorted(SPELLINGS)), rank=RANKS, alpha=ALPHAS, weight=st.floats(-2, 2),
    precision=st.sampled_from(["bf16", "fp8", "int8", "int4"]), by=st.sampled_from(["key", "metadata"]),
)  # fmt: skip
def test_any_rank_alpha_and_weight_in_any_precision(
    original: Path, base: TensorSource, folder: Path, name: str, rank: int, alpha: float,
    weight: float, precision: StoredPrecision, by: str,
) -> None:  # fmt: skip
    """A merged layer is stored as its exact sum would be."""
    layer = "blocks.0.self_attn.q"
    keys = SPELLINGS[name](layer)
    a, b = factors(base, layer, rank)
    tensors = {keys[0]: a, keys[1]: b} | ({keys[2]: torch.tensor(alpha)} if by == "key" else {})
    metadata = None if by == "key" else {"transformer.lora_alpha": str(alpha)}
    path = write(folder / "any.safetensors", tensors, metadata)
    found = merged(original, f"{path}:{weight!r}", precision=precision)
    exact = by_definition(base, layer, weight * alpha / rank, rank)
    if precision == "bf16":
        torch.testing.assert_close(found.read(f"{layer}.weight"), exact, rtol=1e-4, atol=1e-4)
        return
    scheme = SCHEMES[precision]
    parts = {part: found.read(f"{layer}.{part}") for part in scheme.part_shapes(*exact.shape)}
    wanted = quantise_weight(exact, scheme, device=torch.device("cpu"))
    error = scheme.dequantise(parts, torch.float32) - scheme.dequantise(wanted, torch.float32)
    assert error.norm() <= 0.02 * exact.norm()


def test_differences_are_added_to_weights_biases_norms_and_modulations(
    original: Path, base: TensorSource, tmp_path: Path
) -> None:
    keys = {
        "diffusion_model.blocks.0.self_attn.q.diff": "blocks.0.self_attn.q.weight",
        "diffusion_model.blocks.0.self_attn.q.diff_b": "blocks.0.self_attn.q.bias",
        "diffusion_model.blocks.1.norm3.diff": "blocks.1.norm3.weight",
        "diffusion_model.blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
        "diffusion_model.blocks.1.self_attn.norm_q.diff": "blocks.1.self_attn.norm_q.weight",
        "diffusion_model.blocks.1.diff_m": "blocks.1.modulation",
        "diffusion_model.head.diff_m": "head.modulation",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
        "diffusion_model.blocks.2.modulation.diff": "blocks.2.modulation",
        "lora_unet_blocks_3_norm3.w_norm": "blocks.3.norm3.weight",
        "lora_unet_blocks_3_norm3.b_norm": "blocks.3.norm3.bias",
        "transformer.blocks.2.norm2.diff": "blocks.2.norm3.weight",
    }
    tensors = {key: torch.rand(base.infos[name].shape) for key, name in keys.items()}
    found = merged(original, f"{write(tmp_path / 'style.safetensors', tensors)}:0.5")
    for key, name in keys.items():
        wanted = base.read(name).float() + 0.5 * tensors[key]
        torch.testing.assert_close(found.read(name), wanted)


def test_a_tensor_that_is_set_stands_for_the_base(
    original: Path, base: TensorSource, tmp_path: Path
) -> None:
    name = "blocks.0.norm3.weight"
    tensors = {"diffusion_model.blocks.0.norm3.set_weight": torch.ones(base.infos[name].shape)}
    found = merged(original, write(tmp_path / "style.safetensors", tensors))
    assert torch.equal(found.read(name), torch.ones(base.infos[name].shape))


def test_a_bias_of_the_second_factor_is_scaled_as_the_product(
    original: Path, base: TensorSource, tmp_path: Path
) -> None:
    layer = "blocks.0.self_attn.q"
    bias = torch.rand(base.infos[f"{layer}.bias"].shape)
    tensors = adapter(base, SPELLINGS["peft"], alpha=2.0)
    tensors[f"base_model.model.{layer}.lora_B.bias"] = bias
    found = merged(original, write(tmp_path / "style.safetensors", tensors))
    assert_merged(base, found, 0.5)
    wanted = base.read(f"{layer}.bias").float() + 0.5 * bias
    torch.testing.assert_close(found.read(f"{layer}.bias"), wanted)


@pytest.mark.parametrize("layer", ["patch_embedding", "frame_packer.proj_2x", "blocks.0.ffn.0"])
@pytest.mark.parametrize("as_convolution", [True, False])
def test_factors_of_convolutions(
    original: Path, base: TensorSource, tmp_path: Path, layer: str, as_convolution: bool
) -> None:
    a, b = factors(base, layer, 4)
    if as_convolution:
        inner = base.infos[f"{layer}.weight"].shape[1:]
        a, b = a.view(4, *inner, *(1,) * (4 - len(inner))), b.view(-1, 4, 1, 1, 1)
    name = layer.replace(".", "_")
    tensors = {f"lora_unet_{name}.lora_down.weight": a, f"lora_unet_{name}.lora_up.weight": b}
    found = merged(original, write(tmp_path / "style.safetensors", tensors))
    torch.testing.assert_close(found.read(f"{layer}.weight"), by_definition(base, layer, 1.0))


def left_out(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "left out" in record.message]


OF_OTHER_MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "image to video": {
        f"diffusion_model.blocks.{block}.cross_attn.{part}_img.lora_{side}.weight": (4, 4)
        for block in range(2)
        for part in "kv"
        for side in "AB"
    },
    "image embedding": {
        "diffusion_model.img_emb.proj.1.diff": (8, 8),
        "diffusion_model.img_emb.proj.1.diff_b": (8,),
        "diffusion_model.img_emb.emb_pos": (1, 4, 8),
    },
    "text encoder": {
        "lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": (4, 8),
        "lora_te_encoder_block_0_layer_0_SelfAttention_q.alpha": (),
    },
    "controls": {"diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight": (4, 8)},
    "faces": {"diffusion_model.face_adapter.fuser_blocks.0.linear1_q.lora_A.weight": (4, 8)},
    "the second transformer": {"transformer_2.blocks.0.attn1.to_q.lora_A.weight": (4, 8)},
    "a wider input": {
        "diffusion_model.patch_embedding.lora_A.weight": (4, 36, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_B.weight": (128, 4, 1, 1, 1),
    },
    "a wider input, as a difference": {"diffusion_model.patch_embedding.diff": (128, 36, 1, 2, 2)},
    "more blocks": {"diffusion_model.blocks.40.self_attn.q.lora_A.weight": (4, 8)},
}


@pytest.mark.parametrize("kind", OF_OTHER_MODELS)
def test_parts_of_other_models_are_left_out_with_one_warning(
    original: Path, base: TensorSource, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    other = {name: torch.ones(shape) for name, shape in OF_OTHER_MODELS[kind].items()}
    tensors = adapter(base, SPELLINGS["ComfyUI"], alpha=2.0) | other
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        found = merged(original, write(tmp_path / "style.safetensors", tensors))
    assert_merged(base, found, 0.5)
    (warning,) = left_out(caplog)
    assert f"style.safetensors: {len(other)} of {len(tensors)} tensors" in warning


OF_NO_USE: dict[str, tuple[str, str]] = {
    "kohya": ("lora_unet_layers_{}_wq.lora_down.weight", r"names are those of kohya"),
    "diffusers": ("transformer.layers.{}.wq.lora_A.weight", r"names are those of diffusers"),
    "FLUX": ("lora_unet_double_blocks_{}_img_attn.lora_up.weight", r"look like FLUX"),
    "Stable Diffusion": ("lora_unet_down_blocks_{}_proj_in.lora_up.weight", r"Stable Diffusion"),
    "VACE": ("vace_blocks.{}.self_attn.q.lora_A.weight", r"look like Wan VACE"),
    "no scheme": ("layers.{}.wq.lora_A.weight", r"another model\. Tensors"),
}


@pytest.mark.parametrize("kind", OF_NO_USE)
def test_an_adapter_of_another_model_is_refused_in_a_few_lines(
    original: Path, tmp_path: Path, kind: str
) -> None:
    pattern, said = OF_NO_USE[kind]
    tensors = {pattern.format(block): torch.ones(2, 2) for block in range(400)}
    tensors |= {f"{pattern.format('x')}{number}": torch.ones(1) for number in range(30)}
    path = write(tmp_path / "style.safetensors", tensors)
    with pytest.raises(CheckpointError, match=said) as caught:
        merged(original, path)
    assert len(str(caught.value).splitlines()) < 12
    assert "430 of 430 tensors belong to no layer" in str(caught.value)


def test_the_weights_of_a_whole_model_are_no_adapter(
    original: Path, base: TensorSource, tmp_path: Path
) -> None:
    path = write(tmp_path / "model.safetensors", dict(base))
    with pytest.raises(CheckpointError, match="found the weights of a whole model"):
        merged(original, path)


OTHER_METHODS = {
    "LoKr": "lora_unet_blocks_0_ffn_0.lokr_w1",
    "LoHa": "blocks.0.ffn.0.hada_w1_a",
    "OFT": "base_model.model.blocks.0.ffn.0.oft_R.weight",
    "BOFT": "base_model.model.blocks.0.ffn.0.boft_R",
    "GLoRA": "lycoris_blocks_0_ffn_0.a1.weight",
    "DoRA": "diffusion_model.blocks.0.ffn.0.dora_scale",
    "DoRA adapter": "base_model.model.blocks.0.ffn.0.lora_magnitude_vector",
    "lora_mid": "lora_unet_patch_embedding.lora_mid.weight",
    "reshape_weight": "diffusion_model.patch_embedding.reshape_weight",
}


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_kinds_of_adapters_are_refused_by_name(
    original: Path, base: TensorSource, tmp_path: Path, method: str
) -> None:
    tensors = adapter(base, SPELLINGS["peft"]) | {OTHER_METHODS[method]: torch.ones(4, 4)}
    with pytest.raises(CheckpointError, match=rf"this is an? .*{method}"):
        merged(original, write(tmp_path / "style.safetensors", tensors))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["adapter_model.safetensors"], "adapter_model.safetensors"),
        (["adapter_model.safetensors", "optimizer.safetensors"], "adapter_model.safetensors"),
        (["pytorch_lora_weights.safetensors"], "pytorch_lora_weights.safetensors"),
        (["any name.safetensors"], "any name.safetensors"),
        (["adapter_model.bin"], "adapter_model.bin"),
        (["style.pt"], "style.pt"),
        (["epoch.ckpt"], "epoch.ckpt"),
    ],
)
def test_a_folder_stands_for_the_adapter_in_it(
    original: Path, base: TensorSource, tmp_path: Path, names: list[str], wanted: str
) -> None:
    (tmp_path / "._x.safetensors").write_bytes(b"of macOS")
    for name in names:
        tensors = adapter(base, SPELLINGS["peft"])
        if name != wanted:
            tensors = {"state.0": torch.ones(1)}
        if name.endswith(".safetensors"):
            write(tmp_path / name, tensors)
        else:
            torch.save(tensors, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    assert_merged(base, merged(original, f"{tmp_path}:1.0"), 0.5)


def test_a_folder_with_several_adapters_or_none(original: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected one adapter .* found none"):
        merged(original, str(tmp_path))
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"found a\.safetensors, b\.safetensors; name the"):
        merged(original, str(tmp_path))


@pytest.mark.parametrize("name", ["n" * 300, "~nobody_of_this_name/style", "no\0thing", "", "."])
def test_paths_of_no_adapter(original: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected (an|one) adapter"):
        adapters_of(find_checkpoint(original), [LoraSpec(Path(name))])


@pytest.mark.parametrize("name", ["n" * 300, "~nobody_of_this_name/model", "no\0thing"])
def test_names_of_no_model(name: str) -> None:
    with pytest.raises(CheckpointError, match="expected a name"):
        checkpoint_dir(name)
