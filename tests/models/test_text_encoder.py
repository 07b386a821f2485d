"""The text encoder: cleaning, tokens, names."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from lipcast.config.models import TextConfig
from lipcast.errors import CheckpointError, InputError
from lipcast.models.text import TextEncoder, byte_ids, clean_prompt, text_name
from lipcast.weights.load import without_memory

BYTES = TextConfig(
    vocab_size=384,
    dim=16,
    dim_attn=16,
    dim_ffn=24,
    num_heads=2,
    num_layers=1,
    text_len=16,
    tokenizer="ByT5",
)
WORDS = TextConfig(
    vocab_size=8, dim=16, dim_attn=16, dim_ffn=24, num_heads=2, num_layers=1, text_len=4
)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a \n b\t\u3000c ", "a b c"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("&lt;b&gt;", "<b>"),
        ("&ldquo;a&rdquo;", '"a"'),
        ("“don’t”", '"don\'t"'),
        ("e\u0301", "é"),
        ("a\x00b\x1b", "ab"),
        ("&nbsp;x&nbsp;", "x"),
        ("微笑，说话", "微笑，说话"),
        ("", ""),
    ],
)
def test_clean_prompt(text, cleaned):
    assert clean_prompt(text) == cleaned


@given(st.text())
def test_clean_prompt_is_one_line_without_edges(text):
    cleaned = clean_prompt(text)
    assert cleaned == " ".join(cleaned.split())


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(2, 40))
def test_byte_ids(text, text_len):
    ids = byte_ids(text, text_len=text_len)
    assert ids[-1] == 1
    assert len(ids) == min(text_len, len(text.encode()) + 1)
    assert bytes(i - 3 for i in ids[:-1]) == text.encode()[: text_len - 1]


def test_encode_gives_one_row_per_token():
    encoder = TextEncoder(BYTES)
    assert encoder.encode("").shape == (1, BYTES.dim)
    assert encoder.encode("ab c").shape == (5, BYTES.dim)
    assert encoder.encode("x" * 99).shape == (BYTES.text_len, BYTES.dim)
    assert torch.equal(encoder.encode("ab  c\n"), encoder.encode("ab c"))
    assert not torch.equal(encoder.encode("ab c"), encoder.encode("ab d"))


def test_text_that_is_not_unicode():
    with pytest.raises(InputError, match="position 1"):
        TextEncoder(BYTES).token_ids("a\udcff")


@pytest.fixture
def tokenizer_dir(tmp_path):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "smile": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokenizer_of_the_checkpoint(tokenizer_dir):
    encoder = TextEncoder(WORDS, tokenizer_dir)
    assert encoder.token_ids(" a\nsmile ") == [3, 4, 1]
    assert encoder.token_ids("a a a a a a") == [3, 3, 3, 1]
    assert encoder.encode("a smile").shape == (3, WORDS.dim)


def test_missing_and_broken_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="google/umt5-xxl"):
        TextEncoder(WORDS).token_ids("a")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextEncoder(WORDS, tmp_path).token_ids("a")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "?"}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextEncoder(WORDS, tmp_path).token_ids("a")


def official_names(config: TextConfig) -> set[str]:
    inner = [
        "norm1", "attn.q", "attn.k", "attn.v", "attn.o", "norm2",
        "ffn.gate.0", "ffn.fc1", "ffn.fc2", "pos_embedding.embedding",
    ]  # fmt: skip
    blocks = {f"blocks.{i}.{name}.weight" for i in range(config.num_layers) for name in inner}
    return blocks | {"token_embedding.weight", "norm.weight"}


def test_names_cover_the_official_encoder_both_ways():
    with without_memory():
        encoder = TextEncoder(TextConfig(num_layers=3))
    assert {text_name(name) for name in official_names(encoder.config)} == set(encoder.state_dict())


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.q.bias", "blocks.x.norm1.weight", "shared.weight", "blocks", ""]
)
def test_unknown_name(name):
    with pytest.raises(CheckpointError, match="expected the names"):
        text_name(name)
