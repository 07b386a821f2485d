"""Predicted working memory against what the modules really hold.

Every storage that an operation makes is counted from its birth to its death. Kernels' own
workspaces are not seen this way. The published proportions (feed-forward, sink, stages of the
autoencoder) at a tenth of the width: the prediction is made of multiples of an activation.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lipcast.config.geometry import Geometry
from lipcast.config.models import DiTConfig, SpeechShape, TextConfig, VAEConfig
from lipcast.engine.speech_features import FILE_WINDOW, WHOLE_FILE_S, live_window
from lipcast.lab.fake_cuda import DEVICE, fake_cuda
from lipcast.lab.gpu_work import StepCase, default_spec, fake_vae, steady_executor
from lipcast.models import dit as dit_module
from lipcast.models import vae as vae_module
from lipcast.models.kv_codec import PlainCodec
from lipcast.models.kv_ring import KVRing, RingLayout
from lipcast.models.sink import Sink
from lipcast.models.speech import FEATURE_RATE, SpeechConfig, SpeechEncoder
from lipcast.models.text import TextEncoder
from lipcast.planning import costs, sizes
from lipcast.planning.hardware import gpu
from live_bytes import LiveBytes

BF16: dict[str, Any] = {"dtype": torch.bfloat16}
CONFIG = DiTConfig(
    dim=512,
    ffn_dim=1382,
    num_heads=4,
    num_layers=2,
    text_dim=64,
    audio_dim=64,
    num_audio_layers=4,
    audio_inject_layers=(0,),
)
VAE = VAEConfig(dim=16)
HEIGHT, WIDTH = 256, 128
SIDE = 64
"""Of the pictures that the autoencoder gets."""
SMALL = 1.03
"""What biases and tables add at this width."""


def attend(q_TNd: Tensor, *_: Tensor) -> Tensor:
    """What attention holds beside its inputs: the result."""
    return torch.empty_like(q_TNd)


def voice() -> Tensor:
    """Features of one block of 12 video frames."""
    return torch.zeros(1, CONFIG.num_audio_layers, CONFIG.audio_dim, 12, **BF16)


def lane(model: dit_module.DiT, geometry: Geometry) -> dit_module.Lane:
    tokens, heads, head_dim = geometry.tokens_per_frame, CONFIG.num_heads, CONFIG.head_dim
    rows, columns, layers = geometry.patch_height, geometry.patch_width, CONFIG.num_layers
    table = model.rotary.video(0, geometry.latents_per_block, rows, columns)
    codec = PlainCodec(heads, head_dim, torch.bfloat16)
    layout = RingLayout(codec, geometry.window, tokens)
    ring = KVRing.allocate(layout, num_layers=layers, device=torch.device("cpu"))
    height, width = geometry.latent_height, geometry.latent_width
    sink_layout = model.sink_layout(height, width)
    assert sink_layout.num_tokens == geometry.sink_tokens
    sink = Sink.allocate(sink_layout, num_layers=layers, device=torch.device("cpu"))
    placed = torch.empty(layers, tokens, heads, head_dim, **BF16)
    text = torch.empty(CONFIG.text_len, heads, head_dim, **BF16)
    conditions = dit_module.BlockConditions(
        first_frame=100,
        rotary=table,
        sink=sink.place(model.rotary.video(120, 1, rows, columns), placed),
        text=((text, text),) * layers,
        audio=model.encode_audio(voice()),
    )
    rows_6D = torch.zeros(6, CONFIG.dim)
    latent = torch.zeros(16, 3, geometry.latent_height, geometry.latent_width)
    return dit_module.Lane(latent, dit_module.TimeRows(rows_6D[0], rows_6D), ring, conditions)


@pytest.mark.parametrize(("num_lanes", "infer_frames"), [(1, 48), (1, 24), (3, 48)])
def test_a_tick(monkeypatch: pytest.MonkeyPatch, num_lanes: int, infer_frames: int) -> None:
    for module in ("dit", "kernels.plain"):
        monkeypatch.setattr(f"lipcast.models.{module}.attend", attend)
    monkeypatch.setattr("lipcast.models.audio.attend_batch", lambda q, *_: torch.empty_like(q))
    geometry = Geometry.of(CONFIG, VAE, height=HEIGHT, width=WIDTH, infer_frames=infer_frames)
    model = dit_module.DiT(CONFIG).to(torch.bfloat16)
    with torch.inference_mode():
        lanes = [lane(model, geometry) for _ in range(num_lanes)]
    with torch.inference_mode(), LiveBytes() as live:
        model(lanes)
    predicted = sizes.tick_bytes(CONFIG, geometry, "bf16", num_lanes=num_lanes)
    assert live.peak <= SMALL * predicted <= 1.25 * live.peak


QUICK = [
    StepCase("fp8"),
    StepCase("fp8", "fp8", num_lanes=3),
    StepCase("int4", "int4", in_place=True),
    StepCase("fp8", kernels="plain", num_lanes=3),
]
SLOW = [
    StepCase("bf16", num_lanes=3),
    StepCase("bf16", "fp8"),
    StepCase("bf16", merges=False),
    StepCase("fp8", num_lanes=3),
    StepCase("fp8", "fp8", in_place=True, num_lanes=3),
    StepCase("nvfp4", "fp8", num_lanes=3),
    StepCase("nvfp4", in_place=True),
    StepCase("nvfp4", kernels="plain"),
    StepCase("int8", "int4", kernels="plain"),
    StepCase("fp8", kernels="plain"),
    StepCase("bf16", kernels="plain", num_lanes=3),
    StepCase("fp32", kernels="plain"),
]


@pytest.mark.parametrize(
    "case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str
)
def test_a_tick_of_the_true_widths(case: StepCase) -> None:
    """Never less than is held, and at most a tenth more, on every path that the planner tells apart.

    On fake tensors; one layer with an injector, as all are alike.
    """
    config = replace(DiTConfig(), num_layers=1, audio_inject_layers=(0,))
    spec = default_spec(config)
    with fake_cuda(), steady_executor(config, spec, case) as (executor, tick), LiveBytes() as live:
        executor.run(tick)
    # The steps of a case run as on Hopper, those in place as elsewhere.
    hardware = gpu("rtxpro6000" if case.in_place else "b200")
    hardware = replace(hardware, kernels=case.kernels, multiplies_fp8=True)
    attends = costs.ring_reading(hardware, case.precision, case.kv_precision or "bf16")
    predicted = sizes.tick_bytes(
        config,
        spec.geometry,
        case.precision,
        num_lanes=case.num_lanes,
        kernels=case.kernels,
        attends=attends if case.merges else "joined",
        as_stored=costs.weight_reading(hardware, case.precision) == "as stored",
    )
    assert live.peak <= predicted <= 1.1 * live.peak


def test_encoding_the_voice() -> None:
    model = dit_module.DiT(CONFIG).to(torch.bfloat16)
    with torch.inference_mode(), LiveBytes() as live:
        model.encode_audio(voice())
    predicted = sizes.audio_encoding_bytes(CONFIG)
    assert live.peak <= SMALL * predicted <= 1.25 * live.peak


def meta_vae() -> vae_module.VideoVAE:
    """An autoencoder that computes no numbers: convolutions in bfloat16 take a CPU minutes."""
    with torch.device("meta"):
        return vae_module.VideoVAE(VAE).to(torch.bfloat16)


def test_a_pose_in_flight() -> None:
    geometry = Geometry.of(CONFIG, VAE, height=HEIGHT, width=WIDTH, infer_frames=48)
    model = dit_module.DiT(CONFIG).to(torch.bfloat16)
    latents = torch.zeros(16, 3, geometry.latent_height, geometry.latent_width)
    with torch.inference_mode():
        tokens_FSD = model.encode_pose(latents)
    alone, followed = (
        sizes.block_inputs_bytes(CONFIG, geometry, "bf16", has_pose=given)
        for given in (False, True)
    )
    assert followed - alone == tokens_FSD.nbytes


def test_decoding() -> None:
    vae = meta_vae()
    state = vae.new_decoder_state()
    sides = SIDE // VAE.spatial_factor, SIDE // VAE.spatial_factor
    with torch.inference_mode():
        vae.decode_chunk(torch.zeros(1, 16, 2, *sides, device="meta"), state)
    assert state.num_bytes == sizes.decoder_state_bytes(VAE, *sides)
    with torch.inference_mode(), LiveBytes() as live:
        vae.decode_chunk(torch.zeros(1, 16, 3, *sides, device="meta"), state)
    # The caches are replaced on the way: what is alive at the peak holds nearly all new ones.
    work = live.peak - state.num_bytes
    predicted = sizes.decode_work_bytes(VAE, SIDE, SIDE)
    assert work <= SMALL * predicted <= 1.6 * work


def test_fused_kernels_hold_no_more() -> None:
    """The published autoencoder on fake tensors; its caches are planned apart."""
    config, sides = VAEConfig(), (48, 32)
    height, width = (side * config.spatial_factor for side in sides)
    with fake_vae(config) as vae:
        state = vae.new_decoder_state()
        latents = torch.empty(1, 16, 3, *sides, device=DEVICE)
        vae.decode_chunk(latents, state)
        assert state.num_bytes == sizes.decoder_state_bytes(config, *sides)
        with LiveBytes() as decoding:
            vae.decode_chunk(latents, state)
        with LiveBytes() as encoding:
            vae.encode_still(torch.empty(1, 3, height, width, device=DEVICE), 73)
    work = decoding.peak - state.num_bytes
    assert work <= sizes.decode_work_bytes(config, height, width) <= 1.6 * work
    assert encoding.peak <= sizes.encode_work_bytes(config, height, width)


def test_encoding_a_still() -> None:
    vae = meta_vae()
    with torch.inference_mode(), LiveBytes() as live:
        vae.encode_still(torch.zeros(1, 3, SIDE, SIDE, device="meta"), 73)
    predicted = sizes.encode_work_bytes(VAE, SIDE, SIDE)
    assert live.peak <= SMALL * predicted <= 1.25 * live.peak


def speech_encoder(shape: SpeechShape) -> SpeechEncoder:
    kept = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
    raw = {"model_type": "wav2vec2", "num_attention_heads": 4, **kept, **asdict(shape)}
    return SpeechEncoder(SpeechConfig.from_json(raw))


@pytest.mark.parametrize(("num_layers", "ffn"), [(2, 64), (2, 256), (2, 512), (12, 256)])
def test_hearing(monkeypatch: pytest.MonkeyPatch, num_layers: int, ffn: int) -> None:
    """A pass over the longest window, of a second here, and what a session keeps of it."""
    monkeypatch.setattr(sizes, "SPEECH_WINDOW_S", 1)
    monkeypatch.setattr(sizes, "SPEECH_PIECE_S", 0)
    shape = SpeechShape(64, ffn, num_layers, (64,) * 7)
    encoder = speech_encoder(shape)
    window_TD = torch.zeros(50 + shape.num_conv_pos_embeddings, 64)
    with torch.inference_mode(), LiveBytes() as live:
        features = encoder.contextualise(window_TD)
    kept = sizes.speech_features_bytes.__wrapped__(shape)
    assert features.nbytes == kept
    predicted = kept + _speech_work(shape, monkeypatch)
    assert live.peak <= SMALL * predicted <= 1.25 * live.peak


def _speech_work(shape: SpeechShape, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sizes, "speech_features_bytes", sizes.speech_features_bytes.__wrapped__)
    return sizes.speech_work_bytes.__wrapped__(shape)


def test_the_convolutions_of_hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "SPEECH_WINDOW_S", 0)
    shape = SpeechShape(64, 64, 1, (512, *(64,) * 6), num_conv_pos_embeddings=16)
    encoder = speech_encoder(shape)
    config = encoder.config
    piece = torch.zeros((sizes.SPEECH_PIECE_S * 50 - 1) * config.stride + config.receptive_field)
    with torch.inference_mode(), LiveBytes() as live:
        encoder.extract(piece)
    assert live.peak <= SMALL * _speech_work(shape, monkeypatch) <= 1.25 * live.peak


def test_no_window_of_a_voice_is_longer() -> None:
    longest = sizes.SPEECH_WINDOW_S * FEATURE_RATE
    for window in (FILE_WINDOW, live_window(12)):
        assert window.left + window.keep + window.right <= longest
    assert longest >= WHOLE_FILE_S * FEATURE_RATE


@pytest.mark.parametrize(
    ("dim", "ffn", "heads", "length"),
    [(64, 64, 32, 128), (64, 64, 64, 256), (64, 160, 4, 256), (512, 2560, 1, 64)],
)
def test_reading_a_prompt(dim: int, ffn: int, heads: int, length: int) -> None:
    config = TextConfig(300, dim, 128, ffn, heads, num_layers=2, text_len=length, tokenizer="ByT5")
    encoder = TextEncoder(config).to(torch.bfloat16)
    with torch.inference_mode(), LiveBytes() as live:
        encoder(torch.zeros(1, length, dtype=torch.long))
    assert live.peak <= SMALL * sizes.text_work_bytes(config) <= 1.25 * live.peak
