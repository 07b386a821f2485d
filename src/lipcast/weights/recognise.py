"""Recognise a weight file by the names and shapes in its header, whatever it is called.

Input: an opened source. Output: a `Kind`: the part of a checkpoint that it can be, and what it is in
words; None for a file of no kind that is known. Nothing is read but headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lipcast.errors import CheckpointError
from lipcast.weights.files import open_tensors
from lipcast.weights.source import TensorSource


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file. `part`: the part of a checkpoint, "adapter", or None where it is none."""

    part: str | None
    description: str


_WAN_BLOCK = r"(^|\.)blocks\.\d+\.(self_attn\.q|attn1\.to_q)\."
_UMT5_SECOND_BLOCK = (
    r"(^|\.)blocks\.1\.pos_embedding\.",
    r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias",
)
_VARIANTS = (
    (r"audio_injector\.", "dit", "the transformer of Wan2.2-S2V"),
    (r"(^|\.)vace_", None, "the transformer of Wan VACE"),
    (r"face_adapter|motion_encoder|pose_patch_embedding", None, "the transformer of Wan2.2-Animate"),
    (r"audio_proj|audio_cross_attn|audio_model", None,
     "a transformer of InfiniteTalk, MultiTalk or FantasyTalking"),
    (r"control_adapter|(^|\.)ref_conv", None, "the transformer of Wan Fun (control)"),
    (r"img_emb|k_img|add_k_proj|image_embedder", None,
     "the transformer of Wan2.1 image-to-video (I2V)"),
)  # fmt: skip
_BY_INPUT = {
    36: "the transformer of Wan2.2 image-to-video (I2V-A14B)",
    48: "the transformer of Wan2.2-TI2V-5B",
}
_BY_WIDTH = {
    1536: "the transformer of Wan2.1 text-to-video (T2V-1.3B)",
    5120: "the transformer of Wan text-to-video (T2V, 14B)",
}
_OTHERS = (
    (r"lora_(A|B|down|up)\b|\.lora\.(down|up)\.|[._](lokr|hada|oft)_|\.diff(_b|_m)?$",
     "adapter", "an adapter, which is given with --lora"),
    (r"(^|\.)(encoder\.down|decoder\.up)samples\.\d+\.(down|up)samples\.", None,
     "the autoencoder of Wan2.2-TI2V-5B; the one of Wan 2.1 is needed"),
    (r"(^|\.)decoder\.upsamples\.\d+\.residual\.", "vae", "the video autoencoder of Wan 2.1"),
    (r"(^|\.)decoder\.up_blocks\.\d+\.upsamplers\.\d+\.time_conv", "vae",
     "the video autoencoder of Wan 2.1"),
    (r"(^|\.)decoder\.(up\.\d+\.block|up_blocks\.\d+\.resnets)\.", None,
     "an autoencoder of pictures (Stable Diffusion, FLUX)"),
    (r"(^|\.)decoder\.\d+\.conv\.\d+\.weight", None,
     "a tiny decoder (TAEHV), which is given with --decoder"),
    (r"feature_extractor\.conv_layers\.", "speech", "a wav2vec2 speech encoder"),
    (r"(^|\.)visual\.transformer\.|vision_model\.", None, "an image encoder (CLIP)"),
    (r"double_blocks\.|single_transformer_blocks\.", None,
     "a transformer of FLUX or HunyuanVideo"),
    (r"(^|\.)(joint|transformer)_blocks\.", None,
     "a transformer of another model (Stable Diffusion 3, LTX, Qwen-Image)"),
    (r"(input|output)_blocks\.|(down|up)_blocks\.", None, "a network of Stable Diffusion"),
)  # fmt: skip


def recognise(source: TensorSource) -> Kind | None:
    """Return what the file behind a source is; None where that is not known."""
    if _has(source, _OTHERS[0][0]):
        return Kind(*_OTHERS[0][1:])
    if _has(source, _WAN_BLOCK):
        return _wan(source)
    if any(_has(source, pattern) for pattern in _UMT5_SECOND_BLOCK):
        return Kind("text", "the text encoder (UMT5)")
    if _has(source, r"encoder\.block\.0\.layer\.0\.SelfAttention\."):
        return Kind(None, "a text encoder of another model (T5); UMT5-XXL is needed")
    found = (Kind(part, words) for pattern, part, words in _OTHERS if _has(source, pattern))
    return next(found, None)


def recognise_file(path: Path) -> Kind:
    """Return what a file is; one that cannot be opened is of no use, and the words say why."""
    try:
        kind = recognise(open_tensors(path))
    except CheckpointError as error:
        return Kind(None, str(error).removeprefix(f"{path}: "))
    return kind or Kind(None, "weights of a network that is not known")


def _has(source: TensorSource, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in source.infos)


def _wan(source: TensorSource) -> Kind:
    for pattern, part, words in _VARIANTS:
        if _has(source, pattern):
            return Kind(part, words)
    shapes = (i.shape for n, i in source.infos.items() if re.search(r"(^|\.)patch_embedding\.w", n))
    width, channels = (*next(shapes, ()), 0, 0)[:2]
    other = "a transformer of Wan without its audio layers"
    return Kind(None, _BY_INPUT.get(channels) or _BY_WIDTH.get(width) or other)
