"""Weight files of every kind read alike, and what is none is called by its name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.weights import pth_file
from lipcast.weights.files import open_tensors
from lipcast.weights.safetensors_file import DTYPES, read_header
from lipcast.weights.source import RenamedSource, TensorSource, summarise_names
from profiles import examples

from .conftest import TINY

Save = Callable[..., Path]


def sample() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "a.weight": torch.randn(3, 5),
        "a.half": torch.randn(4).to(torch.bfloat16),
        "b.fp8": torch.randn(2, 3).to(torch.float8_e4m3fn),
        "b.count": torch.arange(7),
        "b.scalar": torch.tensor(2.5),
        "b.nothing": torch.zeros(0, 4),
    }


def same(left: Tensor, right: Tensor) -> bool:
    bytes_equal = torch.equal(
        left.contiguous().reshape(-1).view(torch.uint8),
        right.contiguous().reshape(-1).view(torch.uint8),
    )
    return left.dtype == right.dtype and left.shape == right.shape and bytes_equal


def assert_holds(source: TensorSource, tensors: dict[str, Tensor]) -> None:
    assert set(source.infos) == set(tensors)
    for name, tensor in source:
        assert same(tensor, tensors[name]), name
        info = source.infos[name]
        assert (info.shape, info.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert info.num_bytes == tensor.nbytes
    assert source.num_bytes == sum(t.nbytes for t in tensors.values())


def write_sharded(folder: Path, shards: list[dict[str, Tensor]]) -> Path:
    count, weight_map = len(shards), {}
    for number, tensors in enumerate(shards, 1):
        name = f"m-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("mapped", [False, True])
def test_safetensors_reads_as_the_library_does(save: Save, mapped: bool) -> None:
    path = save(sample(), metadata={"format": "pt"})
    source = open_tensors(path, mapped=mapped)
    assert_holds(source, load_file(path))
    assert source.metadata == {"format": "pt"}
    assert source.files == (path,)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pth_reads_mapped(save: Save, suffix: str) -> None:
    assert_holds(open_tensors(save(sample(), f"m{suffix}")), sample())


def test_pth_of_the_old_format_reads(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"w": torch.arange(6.0)}, path, _use_new_zipfile_serialization=False)
    assert_holds(open_tensors(path), {"w": torch.arange(6.0)})


def test_pth_is_mapped_afresh_after_a_while(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(sample(), "m.pth")
    source = open_tensors(path)
    held = source.read("a.weight")
    monkeypatch.setattr(pth_file, "REMAP_BYTES", 0)
    assert source.read("a.weight").data_ptr() != held.data_ptr()
    assert torch.equal(held, sample()["a.weight"])


@pytest.mark.parametrize("mapped", [False, True])
def test_sharded_set_is_one_source(tmp_path: Path, mapped: bool) -> None:
    first, second = {"a": torch.ones(2)}, {"b": torch.zeros(3), "c": torch.ones(1, 2)}
    source = open_tensors(write_sharded(tmp_path, [first, second]), mapped=mapped)
    assert_holds(source, first | second)
    assert len(source.files) == 3


def test_unaligned_data_reads_mapped(tmp_path: Path) -> None:
    header = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    data = bytes([1, 2, 3]) + struct.pack("<2f", 1.5, -2.0)
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    for mapped in (False, True):
        assert open_tensors(path, mapped=mapped).read("w").tolist() == [1.5, -2.0]


def test_renamed_source_reads_under_new_names(save: Save) -> None:
    base = open_tensors(save({"x.a": torch.ones(2), "x.b": torch.zeros(2)}))
    assert_holds(
        RenamedSource(base, lambda name: name.removeprefix("x.")),
        {"a": torch.ones(2), "b": torch.zeros(2)},
    )


def test_the_embedded_model_reads() -> None:
    source = open_tensors(TINY / "diffusion_pytorch_model.safetensors", mapped=True)
    assert sum(info.num_elements for info in source.infos.values()) == 9_623_300
    assert source.infos["blocks.0.self_attn.q.weight"].shape == (256, 256)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"   \n ", "empty"),
        (b"<!DOCTYPE html><html>login</html>" * 20, "web page"),
        (b"\n<HTML lang=en>" * 20, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs"),
        (b'{"error":"Repository not found"}', "a short text"),
        (b"abc", "header is impossible"),
        (b"Entry not found", 'a short text, "Entry not found"'),
        (b"\0" * 4000, "has not finished"),
        (b"\x1f\x8b" + b"x" * 900, "is an archive"),
        (b"7z\xbc\xaf" + b"x" * 900, "is an archive"),
        (struct.pack("<Q", 12) + b"not a header", "not a JSON object"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 14) + b'{"a":{"x": 1}}', "the entry of a is incomplete"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_not_weights_is_called_so(
    tmp_path: Path, content: bytes, said: str, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    either = suffix == ".pth" and said in ("not a JSON object", "header is impossible")
    assert ("expected a PyTorch weight file" if either else said) in str(caught.value)


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_tensors(tmp_path / "gone.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07some tensors")
    with pytest.raises(CheckpointError, match=r'got "\.onnx"'):
        open_tensors(tmp_path / "m.onnx")


def test_pth_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"w": Path("/etc")}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_tensors(path)


def test_pth_whose_end_names_several_disks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(2)}, path)
    data = bytearray(path.read_bytes())
    locator = data.rindex(b"PK\x06\x07")
    data[locator + 16 : locator + 20] = (2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        open_tensors(path)


def test_pth_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"epoch": 3, "model": {}}, path)
    with pytest.raises(CheckpointError, match="extract the model's state dict"):
        open_tensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_truncation_is_found(save: Save, suffix: str) -> None:
    path = save(sample(), f"m{suffix}")
    whole = path.read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=r"cut short|header is impossible|PyTorch weight file"
        ):
            open_tensors(path)


def test_truncation_names_both_sizes(save: Save) -> None:
    path = save({"w": torch.zeros(1000)})
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=f"expected {size:,} bytes, the file has {size - 100:,}"
    ):
        open_tensors(path)


def test_file_cut_while_it_is_open(save: Save) -> None:
    path = save({"w": torch.zeros(1000)})
    source = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        source.read("w")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = write_sharded(tmp_path, [{"a": torch.ones(2)}, {"b": torch.ones(2)}])
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002.safetensors: the file is missing"):
        open_tensors(index)


def test_index_without_one_of_the_shards(tmp_path: Path) -> None:
    index = write_sharded(tmp_path, [{"a": torch.ones(2)}, {"b": torch.ones(2)}])
    content = json.loads(index.read_text())
    del content["weight_map"]["b"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"expected 2 files.*does not list number 00002"):
        open_tensors(index)


def test_index_and_files_that_disagree(tmp_path: Path) -> None:
    index = write_sharded(
        tmp_path, [{"a": torch.ones(2), "d": torch.ones(1)}, {"b": torch.ones(2)}]
    )
    content = json.loads(index.read_text())
    content["weight_map"]["c"] = "m-00002-of-00002.safetensors"
    del content["weight_map"]["d"]
    index.write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match=r"(?s)not in the file named for them:\n  c\n.*\n  d\n"
    ):
        open_tensors(index)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_broken_index(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="weight_map"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F7", "shape": [2], "data_offsets": [0, 8]}, "dtype F7"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "needs 8 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "needs 8 bytes"),
        ({"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}, "is incomplete"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "is incomplete"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "cut short"),
    ],
)
def test_headers_that_lie(tmp_path: Path, entry: dict[str, object], said: str) -> None:
    text = json.dumps({"w": entry}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=said):
        open_tensors(path)


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6, unique=True),
    data=st.data(),
)
def test_any_file_the_library_writes_reads_back(
    tmp_path: Path, names: list[str], data: st.DataObject
) -> None:
    tensors = {}
    for name in names:
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        dtype = data.draw(st.sampled_from(sorted(DTYPES)))
        tensors[name] = torch.randint(0, 2, shape).to(DTYPES[dtype])
    tensors.pop("__metadata__", None)
    path = tmp_path / "m.safetensors"
    save_file(tensors, path)
    assert_holds(open_tensors(path), tensors)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200), prefix=st.sampled_from([b"", struct.pack("<Q", 40)]))
def test_random_bytes_never_pass_and_never_crash(
    tmp_path: Path, noise: bytes, prefix: bytes
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(prefix + noise)
    with pytest.raises(CheckpointError):
        read_header(path)


def test_names_are_summarised_with_nothing_lost() -> None:
    names = [f"blocks.{i}.norm.bias" for i in (0, 1, 2, 5)] + ["head.weight", "mix.3.weight"]
    assert summarise_names(names).splitlines() == [
        "  blocks.{0-2,5}.norm.bias",
        "  head.weight",
        "  mix.3.weight",
    ]
