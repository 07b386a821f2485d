"""Prompt embeddings: once made, no text encoder is needed; what is broken is never used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lipcast.errors import CheckpointError, OutputError
from lipcast.weights import bundle as bundle_module
from lipcast.weights.bundle import ModelBundle, embed_prompt, load_bundle
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.prompts import PromptCache, PromptEmbedding, read_embedding, write_embedding

PROMPT = "a calm man"


@pytest.fixture
def cache(tmp_path: Path) -> PromptCache:
    return PromptCache(tmp_path / "prompts")


def load(source: Path, cache: PromptCache | None = None) -> ModelBundle:
    cpu = torch.device("cpu")
    return load_bundle(source, device=cpu, dtype=torch.float32, prompts=cache)


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From here on nobody may load a text encoder."""

    def refuse(*_: object) -> None:
        raise AssertionError("the text encoder was loaded")

    monkeypatch.setattr(bundle_module, "load_text_encoder", refuse)
    return monkeypatch


def embedding(**changes: object) -> PromptEmbedding:
    values = {"context_TC": torch.randn(5, 64), "prompt": PROMPT, "text_encoder": "abc"} | changes
    return PromptEmbedding(**values)  # type: ignore[arg-type]


def files_of(cache: PromptCache) -> list[Path]:
    return sorted(cache.folder.glob("*.safetensors"))


def test_a_second_run_loads_no_encoder(
    source: Path, cache: PromptCache, request: pytest.FixtureRequest
) -> None:
    first = load(source, cache).encode_prompt(PROMPT)
    request.getfixturevalue("no_encoder")
    second = load(source, cache).encode_prompt(PROMPT)
    assert torch.equal(second, first)
    assert second.dtype == first.dtype
    with pytest.raises(AssertionError, match="was loaded"):
        load(source, cache).encode_prompt("another man")


def test_the_same_prompt_is_kept_in_memory(source: Path) -> None:
    bundle = load(source)
    assert bundle.encode_prompt(PROMPT) is bundle.encode_prompt(PROMPT)


@pytest.mark.parametrize("changed", ["models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json",
                                     "t5_config.json"])  # fmt: skip
def test_another_encoder_has_another_identity(
    source: Path, cache: PromptCache, changed: str
) -> None:
    before = cache.text_identity(find_checkpoint(source))
    path = source / changed
    if path.suffix == ".pth":
        torch.save(torch.load(path) | {"norm.weight": torch.zeros(64)}, path)
    else:
        path.write_text(path.read_text() + " ")
    assert cache.text_identity(find_checkpoint(source)) != before


def test_the_identity_is_of_the_content_not_of_the_place(
    source: Path, cache: PromptCache, tmp_path: Path
) -> None:
    before = cache.text_identity(find_checkpoint(source))
    source.rename(tmp_path / "moved")
    assert cache.text_identity(find_checkpoint(tmp_path / "moved")) == before


def test_a_file_is_hashed_once(
    source: Path, cache: PromptCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.text_identity(find_checkpoint(source))
    with monkeypatch.context() as patch:
        patch.setattr("lipcast.weights.prompts.sha256_of", lambda _: pytest.fail("hashed again"))
        assert cache.text_identity(find_checkpoint(source)) == before
    for note in (cache.folder / "files").iterdir():
        note.write_text("{")
    assert cache.text_identity(find_checkpoint(source)) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "web page"])
def test_a_broken_file_is_ignored_said_and_made_again(
    source: Path, cache: PromptCache, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    files = find_checkpoint(source)
    exact = embed_prompt(PROMPT, files, cache).context_TC
    (path,) = files_of(cache)
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(
        {"truncated": whole[:-7], "flipped": flipped, "empty": b"", "web page": b"<html>"}[damage]
    )
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        assert torch.equal(embed_prompt(PROMPT, files, cache).context_TC, exact)
    assert "ignored, and made again" in caplog.text
    assert path.name in caplog.text
    assert path.read_bytes() == whole
    assert [p.name for p in cache.folder.iterdir() if p.is_file()] == [path.name]


def test_a_file_of_another_prompt_is_not_taken(source: Path, cache: PromptCache) -> None:
    files = find_checkpoint(source)
    exact = embed_prompt(PROMPT, files, cache).context_TC
    (path,) = files_of(cache)
    write_embedding(path, embedding(prompt="another man"))
    assert torch.equal(embed_prompt(PROMPT, files, cache).context_TC, exact)


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = PromptCache(tmp_path / "file" / "prompts")
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        context = embed_prompt(PROMPT, find_checkpoint(source), cache).context_TC
    assert context.shape == (11, 64)
    assert "was not kept" in caplog.text


def test_an_embedding_comes_back(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        written = embedding(context_TC=torch.randn(5, 64).to(dtype), prompt="„Grüße\n“ 😀")
        write_embedding(tmp_path / "folder" / "a.safetensors", written)
        read = read_embedding(tmp_path / "folder" / "a.safetensors")
        assert torch.equal(read.context_TC, written.context_TC)
        assert (read.prompt, read.text_encoder) == (written.prompt, written.text_encoder)


def test_what_is_no_embedding_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found nothing there; make one with"):
        read_embedding(tmp_path / "nowhere")
    save_file({"context": torch.zeros(3, 4)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="got another safetensors file"):
        read_embedding(tmp_path / "weights.safetensors")
    (tmp_path / "words").write_text("a calm man, in words and not in numbers")
    with pytest.raises(CheckpointError, match="words: expected a safetensors file"):
        read_embedding(tmp_path / "words")


def test_an_embedding_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_embedding(tmp_path / "file" / "a.safetensors", embedding())


@pytest.mark.usefixtures("no_encoder")
def test_without_a_text_encoder_an_embedding_does(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        bundle = load(source)
    assert "has no text encoder" in caplog.text
    with pytest.raises(CheckpointError, match=r"(?s)incomplete.*models_t5_"):
        bundle.encode_prompt(PROMPT)
    path = tmp_path / "prompt.safetensors"
    write_embedding(path, written := embedding())
    assert torch.equal(bundle.encode_prompt(path), written.context_TC)


@pytest.mark.parametrize("shape", [(5, 32), (500, 64), (0, 64), (64,)])
def test_an_embedding_of_another_model(
    source: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "prompt.safetensors"
    write_embedding(path, embedding(context_TC=torch.zeros(shape)))
    with pytest.raises(CheckpointError, match=r"expected an embedding \[1 to 128, 64\], got \["):
        load(source).encode_prompt(path)
