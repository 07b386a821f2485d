"""The networks of one checkpoint, loaded.

Input: a checkpoint directory, a device and a precision. Output: `ModelBundle`. Modules are built
without memory and filled strictly. The text encoder is loaded for a prompt and let go again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lipcast.core.config import DiTConfig, TextConfig, VAEConfig
from lipcast.models.dit import DiT
from lipcast.models.speech import SpeechConfig, SpeechEncoder, speech_name
from lipcast.models.text import TextEncoder, text_name
from lipcast.models.vae import VideoVAE
from lipcast.weights.checkpoint import CheckpointFiles, find_checkpoint, read_json
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into
from lipcast.weights.source import RenamedSource

_KEPT_PROMPTS = 16
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(slots=True)
class ModelBundle:
    """Everything that generation computes with."""

    files: CheckpointFiles
    dit: DiT
    vae: VideoVAE
    speech: SpeechEncoder
    device: torch.device
    _contexts: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)

    def encode_prompt(self, prompt: str) -> Tensor:
        """The context [tokens, channels] of a prompt; the last prompts are kept."""
        if prompt not in self._contexts:
            encoder = load_text_encoder(self.files)
            self._contexts[prompt] = encoder.encode(prompt).to(self.device)
            while len(self._contexts) > _KEPT_PROMPTS:
                self._contexts.popitem(last=False)
        return self._contexts[prompt]


def read_configs(files: CheckpointFiles) -> tuple[DiTConfig, VAEConfig]:
    """The configs of transformer and VAE; the VAE's published one where there is no file."""
    assert files.config is not None
    dit = DiTConfig.from_json(read_json(files.config))
    vae = VAEConfig.from_json(read_json(files.vae_config)) if files.vae_config else VAEConfig()
    return dit, vae


def load_bundle(directory: Path, *, device: torch.device, dtype: torch.dtype) -> ModelBundle:
    """Load transformer, VAE and speech encoder; the text encoder's files are only found.

    `dtype` is the transformer's; VAE and speech encoder are float32 on a CPU and follow it on a GPU.
    Raises CheckpointError for anything missing, broken or of another model.
    """
    files = find_checkpoint(directory)
    assert files.dit and files.vae and files.speech
    dit_config, vae_config = read_configs(files)
    side_dtype = dtype if device.type == "cuda" else torch.float32
    with torch.device("meta"):
        dit, vae = DiT(dit_config), VideoVAE(vae_config)
    load_into(dit, open_tensors(files.dit), dtype=dtype, device=device)
    load_into(vae, open_tensors(files.vae), dtype=side_dtype, device=device)
    speech = load_speech_encoder(files.speech, device=device)
    return ModelBundle(files, _frozen(dit), _frozen(vae), speech, device)


def load_speech_encoder(folder: Path, *, device: torch.device) -> SpeechEncoder:
    """wav2vec2 from a Hugging Face folder, in float32."""
    weights = folder / "model.safetensors"
    if not weights.exists():
        weights = folder / "pytorch_model.bin"
    with torch.device("meta"):
        encoder = SpeechEncoder(SpeechConfig.from_json(read_json(folder / "config.json")))
    source = RenamedSource(open_tensors(weights), speech_name)
    load_into(encoder, source, dtype=torch.float32, device=device)
    return _frozen(encoder)


def load_text_encoder(files: CheckpointFiles) -> TextEncoder:
    """UMT5 on the CPU: it runs once per prompt and is let go."""
    assert files.text
    config = (
        TextConfig.from_json(read_json(files.text_config)) if files.text_config else TextConfig()
    )
    with torch.device("meta"):
        encoder = TextEncoder(config, files.tokenizer)
    source = RenamedSource(open_tensors(files.text), text_name)
    load_into(encoder, source, dtype=None if config.dim >= 1024 else torch.float32)
    return _frozen(encoder)


def _frozen(module: _Module) -> _Module:
    module.eval().requires_grad_(False)
    return module
