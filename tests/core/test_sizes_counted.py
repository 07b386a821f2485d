"""Predicted working memory against what the modules really hold, counted on the meta device.

The modules run at the published sizes without data; every storage that an operation makes is
counted from its birth to its death. Kernels' own workspaces are not seen this way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lipcast.core import sizes
from lipcast.core.config import DiTConfig, VAEConfig
from lipcast.core.geometry import Geometry
from lipcast.models import dit as dit_module
from lipcast.models import vae as vae_module
from lipcast.models.attention import KeyValue
from lipcast.models.kv_ring import KVRing, PlacedSink, Sink
from lipcast.models.rope import RotaryTable

BF16: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
CONFIG = DiTConfig(num_layers=2, audio_inject_layers=(0,))


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages born inside that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tree_map_only(Tensor, lambda t: self._add(t, born=False), (args, kwargs))
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda t: self._add(t, born=True), result)
        return result

    def _add(self, tensor: Tensor, *, born: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if born else 0
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def attend(q_TNd: Tensor, parts: Sequence[KeyValue]) -> Tensor:
    """What attention holds: keys and values side by side, and the result."""
    joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)] if len(parts) > 1 else []
    return torch.empty_like(q_TNd) if joined or parts else q_TNd


def lane(model: dit_module.DiT, geometry: Geometry) -> dit_module.Lane:
    tokens, heads, head_dim = geometry.tokens_per_frame, CONFIG.num_heads, CONFIG.head_dim
    rows, columns, layers = geometry.patch_height, geometry.patch_width, CONFIG.num_layers
    table = model.rotary.video(0, geometry.frames_per_block, rows, columns)
    ring = KVRing.allocate(
        num_layers=layers,
        window=geometry.window,
        tokens_per_frame=tokens,
        num_heads=heads,
        head_dim=head_dim,
        dtype=torch.bfloat16,
        device=torch.device("meta"),
    )
    num_motion = geometry.sink_tokens - tokens
    ref, motion, values, placed = (
        torch.empty(layers, count, heads, head_dim, **BF16)
        for count in (tokens, num_motion, geometry.sink_tokens, tokens)
    )
    text = torch.empty(CONFIG.text_len, heads, head_dim, **BF16)
    conditions = dit_module.BlockConditions(
        first_frame=100,
        rotary=RotaryTable(table.cos_TP.to("meta"), table.sin_TP.to("meta")),
        sink=PlacedSink(Sink(ref, motion, values), placed),
        text=((text, text),) * layers,
        audio=model.encode_audio(torch.empty(1, 25, 1024, 12, **BF16)),
    )
    rows_6D = torch.empty(6, CONFIG.dim, device="meta")
    latent = torch.empty(16, 3, geometry.latent_height, geometry.latent_width, device="meta")
    return dit_module.Lane(latent, dit_module.TimeRows(rows_6D[0], rows_6D), ring, conditions)


@pytest.fixture(autouse=True)
def no_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device a normal distribution imports torch's compiler: many seconds."""
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, *_, **__: tensor)


@pytest.mark.parametrize(("num_lanes", "infer_frames"), [(1, 48), (1, 24), (3, 48)])
def test_a_tick(monkeypatch: pytest.MonkeyPatch, num_lanes: int, infer_frames: int) -> None:
    monkeypatch.setattr(dit_module, "attend", attend)
    monkeypatch.setattr("lipcast.models.audio.attend_batch", lambda q, *_: torch.empty_like(q))
    geometry = Geometry.of(CONFIG, VAEConfig(), height=704, width=384, infer_frames=infer_frames)
    with torch.device("meta"), torch.inference_mode():
        model = dit_module.DiT(CONFIG).to(torch.bfloat16)
        lanes = [lane(model, geometry) for _ in range(num_lanes)]
    with torch.inference_mode(), LiveBytes() as live:
        model(lanes)
    predicted = sizes.tick_bytes(CONFIG, geometry, "bf16", num_lanes=num_lanes)
    assert live.peak <= predicted <= 1.25 * live.peak


def test_encoding_the_voice() -> None:
    with torch.device("meta"):
        model = dit_module.DiT(CONFIG).to(torch.bfloat16)
    with torch.inference_mode(), LiveBytes() as live:
        model.encode_audio(torch.empty(1, 25, 1024, 12, **BF16))
    predicted = sizes.audio_encoding_bytes(CONFIG)
    assert live.peak <= predicted <= 1.25 * live.peak


def meta_vae(monkeypatch: pytest.MonkeyPatch) -> vae_module.VideoVAE:
    numbers = torch.empty(16, 1, 1, 1, device="meta")
    monkeypatch.setattr(vae_module, "latent_statistics", lambda *_: (numbers, numbers))
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, *_: torch.empty_like(q)
    )
    with torch.device("meta"):
        return vae_module.VideoVAE(VAEConfig()).to(torch.bfloat16)


def test_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = meta_vae(monkeypatch)
    state = vae.new_decoder_state()
    with torch.inference_mode():
        vae.decode_chunk(torch.empty(1, 16, 2, 88, 48, device="meta"), state)
    assert state.num_bytes == sizes.decoder_state_bytes(VAEConfig(), 88, 48)
    with torch.inference_mode(), LiveBytes() as live:
        vae.decode_chunk(torch.empty(1, 16, 3, 88, 48, device="meta"), state)
    # The caches are replaced on the way: what is alive at the peak holds nearly all new ones.
    work = live.peak - state.num_bytes
    predicted = sizes.decode_work_bytes(VAEConfig(), 704, 384)
    assert work <= predicted <= 1.6 * work


def test_encoding_a_still(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = meta_vae(monkeypatch)
    with torch.inference_mode(), LiveBytes() as live:
        vae.encode_still(torch.empty(1, 3, 704, 384, device="meta"), 73)
    predicted = sizes.encode_work_bytes(VAEConfig(), 704, 384)
    assert live.peak <= predicted <= 1.25 * live.peak
