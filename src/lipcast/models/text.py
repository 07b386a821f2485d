"""The text encoder: a prompt becomes the context that the DiT attends to.

Duty: clean and tokenise a prompt, run the UMT5 encoder of transformers under the official names.
Inputs: TextConfig, the folder of the checkpoint's tokenizer, a prompt. Outputs: context [L, dim].
Invariants: one token row per real token; no padding (the DiT pads with zeros to text_len).
transformers is imported when an encoder is built, not before.

Shapes: B batch, L tokens, D width.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lipcast.config.models import TextConfig
from lipcast.errors import CheckpointError, InputError

BYTE_OFFSET = 3
"""ByT5: ids 0, 1, 2 are pad, </s>, <unk>; byte b is b + 3."""
END_ID = 1

_STRAIGHT_QUOTES = str.maketrans(
    {**dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"), **dict.fromkeys("“”„‟", '"')}
)

_OUTER_NAMES = {
    "token_embedding.weight": "stack.embed_tokens.weight",
    "norm.weight": "stack.final_layer_norm.weight",
}
_BLOCK_NAMES = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def clean_prompt(text: str) -> str:
    """The prompt as the tokenizer gets it: entities resolved twice, one space for any whitespace.

    Of ftfy, which the public implementation calls first, this does what changes the tokens of a
    sensible prompt: straight quotes, NFC, control characters removed. Left out: repair of text
    decoded with the wrong character set, terminal escapes; and full-width letters and ligatures,
    which the tokenizer of umt5 normalises (NFKC) itself.
    """
    text = html.unescape(html.unescape(text))
    text = unicodedata.normalize("NFC", text.translate(_STRAIGHT_QUOTES))
    text = re.sub(r"\s+", " ", text)
    return "".join(c for c in text if unicodedata.category(c) != "Cc").strip()


def byte_ids(text: str, *, text_len: int) -> list[int]:
    """ByT5 ids: every UTF-8 byte + 3, at most text_len - 1 of them, then </s>."""
    return [b + BYTE_OFFSET for b in text.encode("utf-8")[: text_len - 1]] + [END_ID]


def text_name(name: str) -> str:
    """The name in `TextEncoder` of an official name; raises CheckpointError for any other name."""
    block, _, inner = name.removeprefix("blocks.").partition(".")
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    if name.startswith("blocks.") and block.isdigit() and inner in _BLOCK_NAMES:
        return f"stack.block.{block}.{_BLOCK_NAMES[inner]}"
    raise CheckpointError(
        f"text encoder: expected the names of models_t5_umt5-*-enc (blocks.N.attn.q.weight …), "
        f"got {name!r}; is this file the text encoder?"
    )


def build_stack(config: TextConfig) -> nn.Module:
    """The UMT5 encoder stack of transformers (safe under `torch.device("meta")`)."""
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    model = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.dim_attn // config.num_heads,
            d_ff=config.dim_ffn,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_dist,
            layer_norm_epsilon=config.eps,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            use_cache=False,
        )
    )
    # The stack alone: the model around it only holds the same embedding under a second name.
    return cast(nn.Module, model.encoder)


class TextEncoder(nn.Module):
    """UMT5 with its tokenizer.

    tokenizer_dir: folder with `tokenizer.json` (google/umt5-xxl of the checkpoint); None where
    the configuration says byte tokens.
    """

    def __init__(self, config: TextConfig, tokenizer_dir: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer_dir = tokenizer_dir
        self.stack = build_stack(config)
        self.requires_grad_(False).eval()

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Token ids [B, L] of equal true length to hidden states [B, L, D]; no padding, no mask."""
        return cast(Tensor, self.stack(input_ids=ids_BL).last_hidden_state)

    def token_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt, </s> last, at most text_len.

        Raises InputError for text that is not Unicode, CheckpointError without a tokenizer.
        """
        text = clean_prompt(prompt)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"prompt: expected Unicode text, got an invalid character at position "
                f"{error.start}; write the prompt in UTF-8"
            ) from error
        if self.config.byte_tokens:
            return byte_ids(text, text_len=self.config.text_len)
        return list(self._tokenizer.encode(text).ids)

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """The context [L, D] of a prompt, in the precision and on the device of the weights."""
        device = next(self.parameters()).device
        ids_BL = torch.tensor([self.token_ids(prompt)], device=device)
        return cast(Tensor, self(ids_BL)[0])

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        if self.tokenizer_dir is None:
            raise CheckpointError(
                "text encoder: expected the tokenizer folder of the checkpoint "
                "(google/umt5-xxl), got none"
            )
        path = self.tokenizer_dir / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for any bad file
            raise CheckpointError(
                f"{path}: expected the umt5 tokenizer, got {error}; download the checkpoint again"
            ) from error
        tokenizer.enable_truncation(self.config.text_len)
        return tokenizer
