"""Fuzzers of the parsers of weight files: safetensors, GGUF, PyTorch's pickles, sets, adapters."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from fuzz_inputs import broken_copies, file_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from lipcast.config.models import DiTConfig, TextConfig
from lipcast.weights.files import open_tensors
from lipcast.weights.lora import LoraSpec, MergedSource, merge_loras
from lipcast.weights.networks import open_dit, open_text
from lipcast.weights.source import TensorSource

_SMALL = DiTConfig(
    dim=8, ffn_dim=8, num_heads=1, num_layers=2, text_dim=8, audio_inject_layers=(0,)
)
_TEXT = TextConfig(vocab_size=4, dim=8, dim_attn=8, dim_ffn=8, num_heads=1, num_layers=1)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


def _read_all(source: TensorSource) -> None:
    for name in source.infos:
        source.read(name)


# safetensors


@cache
def _good_safetensors() -> bytes:
    tensors = {
        "model.diffusion_model.blocks.0.ffn.0.weight": torch.ones(4, 8).to(torch.float8_e4m3fn),
        "model.diffusion_model.blocks.0.ffn.0.scale_weight": torch.ones(1),
        "blocks.0.ffn.2.comfy_quant": torch.tensor(list(b'{"format": "int8"}'), dtype=torch.uint8),
        "head.modulation": torch.ones(1, 2, 8),
        "empty": torch.ones(0, 3),
    }
    return save(tensors, {"format": "pt"})


@given(broken_copies(_good_safetensors()))
def _safetensors_bytes(data: bytes) -> None:
    with file_of(data, "model.safetensors") as path:
        _read_all(open_dit(path, _SMALL))


_ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "U8", "BOOL", "F4", 3, None]) | _JSON,
        "shape": st.lists(st.integers(-2, 9) | _JSON, max_size=4) | _JSON,
        "data_offsets": st.lists(st.integers(-2, 40) | _JSON, max_size=3) | _JSON,
    },
)
_NAMES = st.sampled_from([
    "blocks.0.ffn.0.weight", "blocks.0.ffn.0.scale_weight", "blocks.0.ffn.0.weight_scale",
    "blocks.0.ffn.0.comfy_quant", "shared.weight", "scaled_fp8", "__metadata__",
]) | st.text(max_size=8)  # fmt: skip


@given(st.dictionaries(_NAMES, _ENTRIES | _JSON, max_size=4) | _JSON, st.binary(max_size=48))
def _safetensors_headers(header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    with file_of(struct.pack("<Q", len(text)) + text + data, "model.safetensors") as path:
        _read_all(open_text(path, _TEXT))


# GGUF


@cache
def _good_gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.gguf"
        file = gguf.GGUFWriter(path, "wan")
        file.add_array("comfy.gguf.orig_shape.b", [2, 2, 1])
        file.add_array("words", ["a", "bc"])
        file.add_bool("flag", True)
        blocks = np.zeros((2, 34), np.uint8)
        file.add_tensor("a", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        file.add_tensor("b", np.ones((2, 2), np.float32))
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return path.read_bytes()


@given(broken_copies(_good_gguf()))
def _gguf_bytes(data: bytes) -> None:
    with file_of(data, "model.gguf") as path:
        _read_all(open_tensors(path))


# PyTorch


@cache
def _good_pickle(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    content = {"state_dict": {"a.weight": torch.ones(2, 3), "b": torch.zeros(1)}, "epoch": 3}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@given(broken_copies(_good_pickle(zipped=True)))
def _zipped_pickles(data: bytes) -> None:
    with file_of(data, "model.pth") as path:
        _read_all(open_tensors(path))


@given(broken_copies(_good_pickle(zipped=False)))
def _old_pickles(data: bytes) -> None:
    with file_of(data, "model.bin") as path:
        _read_all(open_tensors(path))


# Sets


_SHARDS = st.sampled_from(["m.safetensors", "m-00001-of-00002.safetensors", "", "..", "a/b", "\0"])


@given(
    st.fixed_dictionaries(
        {"weight_map": st.dictionaries(st.text(max_size=4), _SHARDS | _JSON, max_size=4) | _JSON},
        optional={"metadata": _JSON},
    )
    | _JSON
)
def _indexes(content: Any) -> None:
    with file_of(json.dumps(content).encode(), "m.safetensors.index.json") as path:
        (path.parent / "m.safetensors").write_bytes(_good_safetensors())
        _read_all(open_tensors(path))


# Adapters


_PREFIX = st.sampled_from(
    ["", "diffusion_model.", "base_model.model.", "lora_unet_", "x.", "lora_te_"]
)
_LAYER = st.sampled_from([
    "blocks.0.ffn.0", "blocks_1_self_attn_q", "blocks.0.attn1.to_q", "blocks.0.norm3",
    "patch_embedding", "head", "blocks.9.ffn.0", "vace_blocks.0.ffn.0",
]) | st.text(max_size=5)  # fmt: skip
_LEAVES = {
    ".lora_A.weight": [2, 8], ".lora_B.weight": [8, 2], ".lora_down.weight": [2, 8],
    ".lora_up.weight": [8, 2], ".lora_A.x.weight": [2, 8], ".lora_B.x.weight": [8, 2],
    ".alpha": [], ".diff": [8, 8], ".diff_b": [8], ".diff_m": [1, 6, 8], ".lora_B.bias": [8],
    ".weight": [8, 8], ".bias": [8], ".set_weight": [8, 8], ".lokr_w1": [2, 2], ".dora_scale": [8],
}  # fmt: skip
_GROUPS = st.sampled_from([
    (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight", ".alpha"),
    (".diff", ".diff_b"), (".lora_A.x.weight", ".lora_B.x.weight", ".lora_B.bias"),
]) | st.lists(st.sampled_from(sorted(_LEAVES)) | st.text(max_size=5), max_size=2)  # fmt: skip
_SHAPES = st.lists(st.sampled_from([0, 1, 2, 8]), max_size=4)
_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8])


@cache
def _base() -> TensorSource:
    from lipcast.planning.tensors import dit_tensors

    folder = Path(tempfile.mkdtemp(prefix="lipcast-fuzz-"))
    path = folder / "base.safetensors"
    path.write_bytes(save({name: torch.ones(shape) for name, shape in dit_tensors(_SMALL).items()}))
    return open_tensors(path)


def _merge(tensors: dict[str, torch.Tensor], metadata: dict[str, str], config: Any) -> None:
    with file_of(save(tensors, metadata), "style.safetensors") as path:
        if config is not None:
            (path.parent / "adapter_config.json").write_text(json.dumps(config))
        merged = merge_loras(_base(), [LoraSpec(path)])
        for name in merged.changed if isinstance(merged, MergedSource) else ():
            merged.read(name)


@given(st.lists(st.tuples(_PREFIX, _LAYER, _GROUPS), max_size=3), st.data())
def _adapter_names(layers: list[tuple[str, str, list[str]]], data: st.DataObject) -> None:
    tensors = {}
    for prefix, layer, leaves in layers:
        for leaf in leaves:
            shape = _LEAVES.get(leaf, [8]) if data.draw(st.integers(0, 5)) else data.draw(_SHAPES)
            tensors[f"{prefix}{layer}{leaf}"] = torch.ones(shape).to(data.draw(_DTYPES))
    tensors.pop("__metadata__", None)
    _merge(tensors, {}, None)


_SETTINGS = st.dictionaries(
    st.sampled_from([
        "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "peft_type",
        "init_lora_weights", "transformer.lora_alpha", "transformer", "alpha",
    ]),
    _JSON | st.dictionaries(st.sampled_from(["q", "ffn.0", "(", "^blocks"]), _JSON, max_size=2),
    max_size=4,
)  # fmt: skip
_METADATA = st.dictionaries(
    st.sampled_from(["lora_adapter_metadata", "alpha", "lora_alpha", "transformer.alpha_pattern"]),
    _SETTINGS.map(json.dumps) | st.text(max_size=6),
    max_size=2,
)


@given(_SETTINGS | _JSON, _METADATA)
def _adapter_configurations(config: Any, metadata: dict[str, str]) -> None:
    name = "base_model.model.blocks.0.ffn.0.lora"
    pair = {f"{name}_A.weight": torch.ones(2, 8), f"{name}_B.weight": torch.ones(8, 2)}
    _merge(pair, metadata, config)


def targets() -> dict[str, Callable[[], None]]:
    return {
        "safetensors: bytes": _safetensors_bytes,
        "safetensors: headers": _safetensors_headers,
        "GGUF": _gguf_bytes,
        "PyTorch: zipped": _zipped_pickles,
        "PyTorch: before 1.6": _old_pickles,
        "indexes of sets": _indexes,
        "adapters: names": _adapter_names,
        "adapters: configurations": _adapter_configurations,
    }
