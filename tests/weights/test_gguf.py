"""GGUF files: block formats against their definition, names, shapes, and broken files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from lipcast.errors import CheckpointError
from lipcast.weights import gguf_file
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.files import open_tensors
from lipcast.weights.gguf_file import FORMATS
from lipcast.weights.quant import quantised
from lipcast.weights.source import TensorInfo

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a GGUF file of {name: (array, kind or None)}."""

    def writer(
        tensors: dict[str, tuple[np.ndarray, Kind | None]],
        architecture: str = "wan",
        original: dict[str, list[int]] | None = None,
        name: str = "model.gguf",
    ) -> Path:
        path = tmp_path / name
        file = gguf.GGUFWriter(path, architecture)
        file.add_array("tokenizer.ggml.tokens", ["a", "bc", "ü"])
        file.add_array("numbers", [1.5, 2.5])
        file.add_bool("flag", True)
        for key, shape in (original or {}).items():
            file.add_array(f"comfy.gguf.orig_shape.{key}", shape)
        for tensor_name, (array, kind) in tensors.items():
            file.add_tensor(tensor_name, array, raw_dtype=kind)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return path

    return writer


def random_blocks(kind: Kind, num_rows: int, row_elements: int) -> np.ndarray:
    """Valid blocks of a K format: random bits with small half-precision scales."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (num_rows * row_elements // elements, size), np.uint8)
    scale = np.array([0.01, 0.02], np.float16).view(np.uint8)
    if kind is Kind.Q6_K:
        blocks[:, -2:] = scale[:2]
    else:
        blocks[:, :4] = scale
    return blocks.reshape(num_rows, -1)


def half(data: bytes) -> float:
    return float(struct.unpack("<e", data)[0])


def scale_and_min(index: int, packed: bytes) -> tuple[int, int]:
    """The 6-bit scale and minimum of one of the 8 groups of Q4_K and Q5_K, by their definition."""
    if index < 4:
        return packed[index] & 63, packed[index + 4] & 63
    low, high = packed[index + 4], (packed[index - 4] >> 6, packed[index] >> 6)
    return (low & 15) | (high[0] << 4), (low >> 4) | (high[1] << 4)


def decode_q4_k(block: bytes) -> list[float]:
    d, low = half(block[:2]), half(block[2:4])
    values = []
    for group in range(8):
        scale, minimum = scale_and_min(group, block[4:16])
        quarter = block[16 + 32 * (group // 2) : 48 + 32 * (group // 2)]
        values += [d * scale * (q >> 4 * (group % 2) & 15) - low * minimum for q in quarter]
    return values


def decode_q5_k(block: bytes) -> list[float]:
    d, low = half(block[:2]), half(block[2:4])
    high, values = block[16:48], []
    for group in range(8):
        scale, minimum = scale_and_min(group, block[4:16])
        quarter = block[48 + 32 * (group // 2) : 80 + 32 * (group // 2)]
        for i, q in enumerate(quarter):
            number = (q >> 4 * (group % 2) & 15) + 16 * (high[i] >> group & 1)
            values.append(d * scale * number - low * minimum)
    return values


def decode_q6_k(block: bytes) -> list[float]:
    low, high, scales, d = block[:128], block[128:192], block[192:208], half(block[208:])
    values = [0.0] * 256
    for part in (0, 1):
        for i in range(32):
            for k in range(4):
                bits = low[64 * part + i + 32 * (k % 2)] >> 4 * (k // 2) & 15
                number = (bits | (high[32 * part + i] >> 2 * k & 3) << 4) - 32
                scale = struct.unpack("b", scales[8 * part + 2 * k + i // 16 :][:1])[0]
                values[128 * part + 32 * k + i] = d * scale * number
    return values


IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def decode_iq4_nl(block: bytes) -> list[float]:
    d, packed = half(block[:2]), block[2:]
    low, high = [q & 15 for q in packed], [q >> 4 for q in packed]
    return [d * IQ4_VALUES[q] for q in low + high]


def test_iq4_nl_decodes_by_its_definition(write: Write) -> None:
    """The formats of the IQ family are decoded by the same package."""
    blocks = np.random.default_rng(0).integers(0, 256, (3, 2, 18), np.uint8)
    blocks[:, :, :2] = np.array([0.01], np.float16).view(np.uint8)
    path = write({"w": (blocks.reshape(3, -1), Kind.IQ4_NL)})
    expected = [v for b in blocks.reshape(6, -1) for v in decode_iq4_nl(b.tobytes())]
    got = open_tensors(path).read("w")
    assert got.shape == (3, 64)
    torch.testing.assert_close(got.flatten(), torch.tensor(expected).bfloat16())


DECODERS = {Kind.Q4_K: decode_q4_k, Kind.Q5_K: decode_q5_k, Kind.Q6_K: decode_q6_k}


@pytest.mark.parametrize("kind", DECODERS)
def test_k_formats_decode_by_their_definition(write: Write, kind: Kind) -> None:
    blocks = random_blocks(kind, 3, 512)
    path = write({"w": (blocks, kind)})
    expected = [v for b in blocks.reshape(6, -1) for v in DECODERS[kind](b.tobytes())]
    got = open_tensors(path).read("w")
    assert got.shape == (3, 512)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, torch.tensor(expected).view(3, 512).bfloat16())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Kind.Q8_0, 0.006),
        (Kind.Q5_1, 0.05),
        (Kind.Q5_0, 0.06),
        (Kind.Q4_1, 0.09),
        (Kind.Q4_0, 0.11),
    ],
)
def test_encoded_weights_come_back(write: Write, kind: Kind, error: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 256)
    path = write({"w": (gguf.quantize(weight.numpy(), kind), kind)})
    got = open_tensors(path).read("w").float()
    assert 0 < float((got - weight).norm() / weight.norm()) < error


def test_plain_floats_are_exact(write: Write) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6)
    brain = weight.bfloat16().view(torch.uint8).numpy()
    path = write(
        {
            "a": (weight.numpy(), None),
            "b": (weight.half().numpy(), None),
            "c": (brain, Kind.BF16),
            "scalarlike": (np.ones(1, np.float32), None),
        }
    )
    source = open_tensors(path)
    assert torch.equal(source.read("a"), weight)
    assert torch.equal(source.read("b"), weight.half())
    assert torch.equal(source.read("c"), weight.bfloat16())
    for name, tensor in source:
        assert source.infos[name] == TensorInfo(name, tuple(tensor.shape), tensor.dtype)


def test_decoding_in_pieces_changes_nothing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_tensors(write({"w": (random_blocks(Kind.Q6_K, 8, 512), Kind.Q6_K)}))
    whole = source.read("w")
    monkeypatch.setattr(gguf_file, "_PIECE_BYTES", 3 * 210)
    assert torch.equal(source.read("w"), whole)


def test_transformer_names_and_large_convolutions(write: Write) -> None:
    """Prefixes are dropped; a convolution with five axes gets its true shape back."""
    kernel = torch.randn(8, 16, 1, 2, 2)
    path = write(
        {
            "model.diffusion_model.patch_embedding.weight": (kernel.view(8, 64).numpy(), None),
            "blocks.0.self_attn.q.bias": (np.ones(4, np.float32), None),
        },
        original={"model.diffusion_model.patch_embedding.weight": [8, 16, 1, 2, 2]},
    )
    source = open_tensors(path)
    assert set(source.infos) == {"patch_embedding.weight", "blocks.0.self_attn.q.bias"}
    assert torch.equal(source.read("patch_embedding.weight"), kernel)


def llama_name(official: str) -> str:
    """The name of a text encoder's tensor in llama.cpp, from the package's own tables."""
    outer = {"token_embedding.weight": "token_embd", "norm.weight": "enc.output_norm"}
    if official in outer:
        return outer[official] + ".weight"
    kinds = gguf.MODEL_TENSOR
    inner = {
        "norm1": kinds.ENC_ATTN_NORM, "attn.q": kinds.ENC_ATTN_Q, "attn.k": kinds.ENC_ATTN_K,
        "attn.v": kinds.ENC_ATTN_V, "attn.o": kinds.ENC_ATTN_OUT,
        "pos_embedding.embedding": kinds.ENC_ATTN_REL_B, "norm2": kinds.ENC_FFN_NORM,
        "ffn.gate.0": kinds.ENC_FFN_GATE, "ffn.fc1": kinds.ENC_FFN_UP, "ffn.fc2": kinds.ENC_FFN_DOWN,
    }  # fmt: skip
    _, block, rest = official.split(".", 2)
    kind = inner[rest.removesuffix(".weight")]
    return gguf.TENSOR_NAMES[kind].format(bid=block) + ".weight"


@pytest.mark.parametrize("architecture", ["t5", "t5encoder"])
def test_text_encoder_gets_the_official_names(
    write: Write, official_infos: dict[str, list[TensorInfo]], architecture: str
) -> None:
    names = [info.name for info in official_infos["umt5-xxl"]]
    tiny = np.ones(1, np.float32)
    path = write({llama_name(name): (tiny, None) for name in names}, architecture)
    assert set(open_tensors(path).infos) == set(names)


def test_a_decoder_in_the_text_file_keeps_its_name_for_the_strict_check(write: Write) -> None:
    path = write({"dec.blk.0.attn_q.weight": (np.ones(2, np.float32), None)}, "t5")
    assert set(open_tensors(path).infos) == {"dec.blk.0.attn_q.weight"}


def test_blocks_are_requantised_in_the_stream(write: Write) -> None:
    blocks = random_blocks(Kind.Q4_K, 16, 256)
    base = open_tensors(write({"blocks.0.ffn.0.weight": (blocks, Kind.Q4_K)}))
    source = quantised(base, "int8")
    weight = base.read("blocks.0.ffn.0.weight").float()
    parts = {n.rpartition(".")[2]: t for n, t in source}
    restored = parts["qweight"].float() * parts["scale"][:, None]
    assert float((restored - weight).norm() / weight.norm()) < 0.02


def test_a_directory_tells_transformer_from_text_encoder(write: Write, tmp_path: Path) -> None:
    """By what is in the files: their names say nothing."""
    ones = (np.ones(2, np.float32), None)
    layers = ("blocks.0.self_attn.q.weight", "audio_injector.injector.0.q.weight")
    dit = write(dict.fromkeys(layers, ones), name="a.gguf")
    text = write({"enc.blk.1.attn_rel_b.weight": ones}, name="b.gguf", architecture="t5encoder")
    other = write({"blocks.0.self_attn.q.weight": ones}, name="c.gguf")
    files = find_checkpoint(tmp_path, need=())
    assert (files.dit, files.text) == (dit, text)
    assert files.others == (f"  {other.name}: a transformer of Wan without its audio layers",)


def test_every_truncation_is_found(write: Write) -> None:
    path = write({"w": (random_blocks(Kind.Q6_K, 2, 256), Kind.Q6_K)})
    whole = path.read_bytes()
    last = open_tensors(path)._stored["w"].offset + 2 * 210  # type: ignore[attr-defined]
    for length in range(1, last, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            open_tensors(path)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(0, b"GGML", "expected GGUF"), (4, b"\x01\0\0\0", "version 1"), (8, b"\xff" * 8, "cut short")],
)
def test_foreign_headers(write: Write, at: int, value: bytes, said: str) -> None:
    path = write({"w": (np.ones(2, np.float32), None)})
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        open_tensors(path)


def test_unknown_block_format_is_named(write: Write) -> None:
    size = gguf.GGML_QUANT_SIZES[Kind.Q8_1][1]
    path = write({"w": (np.zeros((1, size), np.uint8), Kind.Q8_1)})
    with pytest.raises(CheckpointError, match=r"w has ggml type 9 \(Q8_1\); .*F32.*Q6_K"):
        open_tensors(path)


def test_contradicting_shapes(write: Write) -> None:
    path = write({"w": (np.ones(4, np.float32), None)}, original={"w": [2, 3]})
    with pytest.raises(CheckpointError, match="w has two sizes"):
        open_tensors(path)


def test_the_table_agrees_with_the_package() -> None:
    for number, known in FORMATS.items():
        assert Kind(number).name == known.name
        assert gguf.GGML_QUANT_SIZES[Kind(number)] == (known.block_elements, known.block_bytes)
