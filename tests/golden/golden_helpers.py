"""Build models and lanes from a reference file's own weights and metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lipcast.config.models import DiTConfig
from lipcast.models.dit import BlockConditions, DiT, Lane, TimeRows
from lipcast.models.kv_codec import PlainCodec
from lipcast.models.kv_ring import KVRing, RingLayout
from lipcast.models.rope import ref_frame
from lipcast.models.sink import Sink
from lipcast.weights.load import without_memory

DEFAULT_DIR = Path(__file__).parent / "data"


class GoldenCase:
    """One reference file: tensors by name, weights by prefix, metadata parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = safe_open(path, framework="pt")
        self.names = list(self._file.keys())
        self.meta = {k: _parse(v) for k, v in (self._file.metadata() or {}).items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Every tensor below `prefix`, the prefix removed from its name."""
        return {n[len(prefix) :]: self[n] for n in self.names if n.startswith(prefix)}

    def weights(self) -> dict[str, torch.Tensor]:
        return self.under("weights/")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def dit_config(meta: dict[str, Any], weights: dict[str, torch.Tensor], **changes: Any) -> DiTConfig:
    """Sizes from the metadata; where that is silent, from the shapes of the weights."""
    mix = weights.get("casual_audio_encoder.weights")
    time = weights.get("time_embedding.0.weight")
    found = {
        "dim": meta["dim"], "ffn_dim": meta["ffn_dim"], "num_heads": meta["num_heads"],
        "num_layers": meta["num_layers"], "text_dim": meta["text_dim"], "audio_dim": meta["audio_dim"],
        "audio_inject_layers": tuple(meta["audio_inject_layers"]),
        "num_audio_layers": mix.shape[1] if mix is not None else 25,
        "freq_dim": time.shape[1] if time is not None else 256,
    }  # fmt: skip
    return DiTConfig(**(found | changes))


def build_dit(meta: dict[str, Any], weights: dict[str, torch.Tensor]) -> DiT:
    """The reference's DiT with its weights, strictly loaded; rotary tables rounded as there."""
    config = dit_config(meta, weights)
    with without_memory():
        model = DiT(config, half_precision_rope=True)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


class Driver:
    """The plainest rollout: one lane at a time, conditions made anew for every step."""

    def __init__(
        self,
        model: DiT,
        context: torch.Tensor,
        latent_hw: tuple[int, int],
        window: int,
        timesteps: list[float],
    ) -> None:
        config = model.config
        self.model, self.latent_hw = model, latent_hw
        self.text = model.encode_text(context)
        self.times: list[TimeRows] = [model.encode_time(t) for t in timesteps]
        tokens = (latent_hw[0] // 2) * (latent_hw[1] // 2)
        self.rings = [
            plain_ring(config, window, tokens, num_layers=config.num_layers) for _ in timesteps
        ]

    def new_sink(self) -> Sink:
        layout = self.model.sink_layout(*self.latent_hw)
        num_layers = self.model.config.num_layers
        return Sink.allocate(layout, num_layers=num_layers, device=self.model.device)

    def velocity(
        self,
        latent: torch.Tensor,
        *,
        block: int,
        step: int,
        sink: Sink,
        distance: int,
        features: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        first = block * self.model.config.latents_per_block
        conditions = BlockConditions(
            first_frame=first,
            rotary=self.model.block_rotary(first, *self.latent_hw),
            sink=sink.place(
                self.model.ref_rotary(ref_frame(first, distance), *self.latent_hw), None
            ),
            text=self.text,
            audio=self.model.encode_audio(features, mask),
        )
        return self.model([Lane(latent, self.times[step], self.rings[step], conditions)])[0]


def plain_ring(config: DiTConfig, window: int, tokens: int, *, num_layers: int) -> KVRing:
    codec = PlainCodec(config.num_heads, config.head_dim, torch.float32)
    layout = RingLayout(codec, window, tokens)
    return KVRing.allocate(layout, num_layers=num_layers, device=torch.device("cpu"))


def read_ring(
    ring: KVRing, layer: int, next_frame: int, config: DiTConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that the ring keeps."""
    shape = (ring.num_tokens(next_frame), config.num_heads, config.head_dim)
    k, v = torch.empty(shape), torch.empty(shape)
    ring.read_into(layer, next_frame, k, v)
    return k, v


def max_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float((got - expected).abs().max())
