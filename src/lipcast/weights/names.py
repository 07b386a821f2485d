"""Other people's names for the tensors of this family, and the way back to the official ones.

Input: the official names of one network. Output: a `NameTable`, which finds the official name behind
any spelling: with the prefix of another program, with underscores for dots (kohya), or with the
names of diffusers and transformers. One table per network serves checkpoints and adapters alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from lipcast.models.text import text_name

Spelling = Callable[[str], str]

_SEPARATORS = re.compile(r"[._]+")
_PREFIX = re.compile(
    r"^(base_model|diffusion_model|first_stage_model|model|pipe|dit|vae|transformer|unet|module"
    r"|lora|lycoris|orig_mod|net|network|wan|denoiser|generator|student)_"
)
"""Words that programs put before a name: ComfyUI, diffusers, peft, kohya, DiffSynth, DDP, compile."""

_DIT_DIFFUSERS = (
    (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
    (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
    (r"^time_projection\.1", "condition_embedder.time_proj"),
    (r"^cond_encoder", "condition_embedder.pose_embedder"),
    (r"^casual_audio_encoder\.weights", "condition_embedder.causal_audio_encoder.weighted_avg.weights"),
    (r"^casual_audio_encoder", "condition_embedder.causal_audio_encoder"),
    (r"^trainable_cond_mask", "trainable_condition_mask"),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head", "proj_out"),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.norm3\b", ".norm2"),
    (r"\.([qkv])(?=\.|$)", r".to_\1"),
    (r"\.o(?=\.|$)", ".to_out.0"),
    (r"\.ffn\.0(?=\.|$)", ".ffn.net.0.proj"),
    (r"\.ffn\.2(?=\.|$)", ".ffn.net.2"),
)  # fmt: skip
_VAE_DIFFUSERS = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def dit_table(names: Iterable[str]) -> NameTable:
    """Return the table of a transformer with these tensors."""
    return NameTable(names, lambda name: _replaced(name, _DIT_DIFFUSERS))


def vae_table(names: Iterable[str], *, num_res_blocks: int) -> NameTable:
    """Return the table of a video autoencoder with this many residual blocks per resolution."""
    group = num_res_blocks + 2  # one more in the decoder, and what doubles the size

    def diffusers(name: str) -> str:
        return re.sub(r"\.upsamples\.(\d+)", up_block, _replaced(name, _VAE_DIFFUSERS))

    def up_block(match: re.Match[str]) -> str:
        block, index = divmod(int(match[1]), group)
        layer = f"resnets.{index}" if index < group - 1 else "upsamplers.0"
        return f".up_blocks.{block}.{layer}"

    return NameTable(names, diffusers)


def text_table(names: Iterable[str]) -> NameTable:
    """Return the table of a UMT5 encoder; transformers has the embedding under two names."""

    def transformers(name: str) -> str:
        return text_name(name).replace("stack.", "encoder.", 1)

    return NameTable(
        names, transformers, lambda name: re.sub(r"^token_embedding\.", "shared.", name)
    )


def _replaced(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


class NameTable:
    """The official names of one network by every spelling of them.

    It knows tensors ("blocks.0.self_attn.q.weight") and what owns them ("blocks.0.self_attn.q").
    """

    def __init__(self, names: Iterable[str], *spellings: Spelling) -> None:
        self.tensors = dict.fromkeys(names)
        self._official: dict[str, str] = {}
        for spell in (*spellings, _official):  # the official spelling last: it wins
            for name in self.tensors:
                spelled = spell(name)
                self._official[_normal(spelled)] = name
                self._official[_normal(_owner(spelled))] = _owner(name)
        self._official.pop("", None)

    def find(self, name: str) -> str | None:
        """Return the official name behind `name`; None where this network has no such part."""
        key, last = _normal(name), ""
        while key not in self._official and key != last:
            key, last = _PREFIX.sub("", key, count=1), key
        return self._official.get(key)


def _official(name: str) -> str:
    return name


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _normal(name: str) -> str:
    """Return a name with one underscore for every dot or row of underscores."""
    return _SEPARATORS.sub("_", name).strip("_")
