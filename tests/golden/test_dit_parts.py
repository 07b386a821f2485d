"""Frame packer, audio encoder, injector and one transformer block against the reference (cases 02-04)."""

from __future__ import annotations

import pytest
import torch
from golden_helpers import dit_config, max_error, plain_ring, read_ring

from lipcast.models.attention import attend
from lipcast.models.audio import AudioConditioning, AudioInjector, CausalAudioEncoder
from lipcast.models.dit import TransformerBlock, _SinkAttention
from lipcast.models.motion import FramePacker
from lipcast.models.rope import Rotary
from lipcast.models.sink import Sink, SinkLayout

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def test_frame_packer(golden):
    case = golden("case02")
    packer = FramePacker(case["inputs/frames19/motion_latents"].shape[0], case.meta["dim"])
    weights = case.weights()
    prefix = "frame_packer." if any(n.startswith("frame_packer.") for n in weights) else ""
    packer.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items()})
    for name in ("frames92", "frames19", "frames7", "frames1"):
        tokens = packer(case[f"inputs/{name}/motion_latents"])
        assert max_error(tokens, case[f"outputs/{name}/tokens"][0]) <= 5e-5, name


def _audio_parts(case):
    weights = case.weights()
    config = dit_config(case.meta, weights)
    encoder, injector = CausalAudioEncoder(config), AudioInjector(config)
    for module, prefix in ((encoder, "casual_audio_encoder."), (injector, "audio_injector.")):
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        module.load_state_dict(own, strict=True)
    return config, encoder, injector


@pytest.mark.parametrize("name", ["one_actor", "two_actors", "clip48"])
def test_audio_encoder(golden, name):
    case = golden("case03")
    _, encoder, _ = _audio_parts(case)
    features = case[f"inputs/{name}/audio_block"]
    for lead_frames in (5, 73):
        overall, local = encoder(features, lead_frames=lead_frames)
        assert max_error(overall, case[f"outputs/{name}/global"].squeeze(2)) <= 1e-5
        assert max_error(local, case[f"outputs/{name}/tokens"]) <= 1e-5


def test_audio_encoder_before_the_cut(golden):
    case = golden("case03")
    _, encoder, _ = _audio_parts(case)
    features = case["inputs/one_actor/audio_block"]
    mix = torch.nn.functional.silu(encoder.weights)
    mixed = (features * mix).sum(1) / mix.sum(1)
    repeated = torch.cat((mixed[..., :1].expand(-1, -1, 73), mixed), dim=-1)
    overall, local = encoder.encoder(repeated)
    assert max_error(overall, case["mid/one_actor/global_all"].squeeze(2)) <= 1e-5
    assert max_error(local, case["mid/one_actor/local_all"]) <= 1e-5


def _prepare(injector, tokens):
    return tuple(injector.prepare(i, *tokens) for i in range(len(injector.injector)))


@pytest.mark.parametrize("name", ["one_actor", "two_actors"])
def test_injector(golden, name):
    case = golden("case03")
    config, encoder, injector = _audio_parts(case)
    prepared = _prepare(injector, encoder(case[f"inputs/{name}/audio_block"]))
    mask = None
    if f"inputs/{name}/mask" in case:
        mask = case[f"inputs/{name}/mask"][:, : config.latents_per_block].flatten(2)
    audio = AudioConditioning(prepared, mask)
    for i, layer in enumerate(config.audio_inject_layers):
        x = case[f"inputs/{name}/inject_layer{layer}/hidden"][0]
        frames = x.view(config.latents_per_block, -1, config.dim)
        got = (frames + injector(i, frames, audio)).flatten(0, 1)
        assert max_error(got, case[f"outputs/{name}/inject_layer{layer}/hidden"][0]) <= 1e-5


def test_injector_small_activations(golden):
    """Sensitive to the epsilon of the AdaLN: 1e-5, not 1e-6."""
    case = golden("case03")
    config, encoder, injector = _audio_parts(case)
    audio = AudioConditioning(_prepare(injector, encoder(case["inputs/one_actor/audio_block"])))
    x = case["inputs/one_actor/small_hidden"][0].view(config.latents_per_block, -1, config.dim)
    got = injector(0, x, audio).flatten(0, 1)
    assert max_error(got, case["outputs/one_actor/small_hidden"][0]) <= 1e-5


def _block(case, golden):
    """The case is block 1 of the rollout's model."""
    config = dit_config(case.meta, golden("case05_model").weights())
    block = TransformerBlock(config)
    block.load_state_dict(golden("case05_model").under("weights/blocks.1."), strict=True)
    text = block.cross_attn.keys_values(case["inputs/context"][0])
    return config, block, text


def _prefilled(config, case, block, text, name):
    """(output, sink, motion positions) of one block over the condition tokens."""
    height, width = (n // 2 for n in case.meta["lat"])
    rotary = Rotary(config.head_dim, half_precision_tables=True)
    ref, motion = rotary.video(30, 1, height, width), rotary.motion(height, width)
    heads = config.num_heads, config.head_dim
    layout = SinkLayout(ref.num_tokens, motion.num_tokens, *heads, torch.float32)
    sink = Sink.allocate(layout, num_layers=1, device=torch.device("cpu"))
    rows = case[f"inputs/{name}/e"][:, 0, :, 1]
    x = block(case[f"inputs/{name}/x"], rows, _SinkAttention(0, sink, ref, motion), [text])
    return x, sink, motion


@pytest.mark.parametrize("name", ["prefill", "small"])
def test_block_prefill(golden, name):
    case = golden("case04")
    config, block, text = _block(case, golden)
    x, sink, motion = _prefilled(config, case, block, text, name)
    kept, num_ref = sink.planes(0), sink.layout.num_ref
    expected_k = case[f"outputs/{name}/cond_k"][0]
    assert max_error(kept.ref_keys_SNd, expected_k[:num_ref]) <= 2e-5
    assert max_error(kept.motion_keys_MNd, motion.apply(expected_k[num_ref:])) <= 2e-5
    if f"outputs/{name}/x" in case:
        assert max_error(x, case[f"outputs/{name}/x"]) <= 2e-5
    if f"outputs/{name}/cond_v" in case:
        assert max_error(kept.values_TNd, case[f"outputs/{name}/cond_v"][0]) <= 2e-5


def test_block_streaming(golden):
    """Five blocks through a ring of two: the ring wraps, the reference moves ahead."""
    case = golden("case04")
    config, block, text = _block(case, golden)
    height, width = (n // 2 for n in case.meta["lat"])
    tokens, frames = height * width, config.latents_per_block
    _, sink, _ = _prefilled(config, case, block, text, "prefill")
    window = case["outputs/block0/ring_k"].shape[1] // tokens
    ring = plain_ring(config, window, tokens, num_layers=1)
    rotary = Rotary(config.head_dim, half_precision_tables=True)
    distances = case["inputs/relative_dist"].tolist()
    for i, distance in enumerate(distances):
        first = int(case[f"inputs/block{i}/current_start"]) // tokens
        table = rotary.video(first, frames, height, width)
        placed = sink.place(rotary.video(max(30, first + distance), 1, height, width), None)

        def stream(q, k, v, norms, first=first, table=table, placed=placed):
            assert norms is None, "queries and keys are normed already"
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
            ring.write(0, first, table.apply(k), v)
            remembered = read_ring(ring, 0, first + frames, config)
            conditions = [torch.empty(placed.num_tokens, *k.shape[1:]) for _ in range(2)]
            placed.read_into(0, *conditions)
            parts = zip(remembered, conditions, strict=True)
            out = attend(table.apply(q), *(torch.cat(part) for part in parts))
            return out.view(frames, tokens, *q.shape[1:])

        x = case[f"inputs/block{i}/x"][0].view(frames, tokens, -1)
        rows = case[f"inputs/block{i}/e"][0, :, :, 0]
        got = block(x, rows, stream, [text]).flatten(0, 1)
        assert max_error(got, case[f"outputs/block{i}/x"][0]) <= 2e-5, i
        k, v = read_ring(ring, 0, first + frames, config)
        assert max_error(k, case[f"outputs/block{i}/ring_k"][0, : k.shape[0]]) <= 2e-5, i
        assert max_error(v, case[f"outputs/block{i}/ring_v"][0, : v.shape[0]]) <= 2e-5, i
