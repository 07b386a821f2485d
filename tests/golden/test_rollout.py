"""Whole rollouts against the reference: every latent of every step (cases 05a-05e, 06).

The reference's noise, features, rotary distances and condition latents are inputs; its pixel
re-encoding between clips is not reproduced.
"""

from __future__ import annotations

import re

import pytest
import torch
from golden_helpers import Driver, build_dit, max_error, read_ring

from lipcast.config.timesteps import flow_schedule
from lipcast.models.sink import Sink

CASES = ["case05a", "case05b", "case05c", "case05d", "case05e"]


def _count(case, pattern: str) -> int:
    return len({m[1] for n in case.names if (m := re.match(pattern, n))})


def _sinks(model, driver, case) -> list[Sink]:
    """One sink per prefill whose latents the file holds."""
    found = []
    for i in range(2):
        ref = f"mid/prefill{i}/ref_latents"
        if ref not in case:
            break
        motion = next(
            (
                case[n]
                for n in (f"mid/prefill{i}/motion_latents", f"mid/prefill{i}/motion_last19")
                if n in case
            ),
            None,
        )
        if motion is None:
            return found
        found.append(driver.new_sink())
        model.prefill(case[ref][0], motion[0][:, -19:], driver.text, found[-1])
    return found


def _check_sink(sink: Sink, case, index: int) -> None:
    for layer in range(sink.num_layers):
        name = f"outputs/prefill{index}/layer{layer}/cond"
        if f"{name}_k" not in case:
            continue
        kept, num_ref = sink.planes(layer), sink.layout.num_ref
        assert max_error(kept.ref_keys_SNd, case[f"{name}_k"][0, :num_ref]) <= 2e-5
        assert max_error(kept.values_TNd, case[f"{name}_v"][0]) <= 2e-5


def _motion_source(case, golden):
    """5b and 5c take reference and motion latents from 5a; 5e's clip 0 has its own."""
    return case if "mid/prefill0/motion_latents" in case else golden("case05a")


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_rollout(golden, name):
    case, weights = golden(name), golden("case05_model")
    model = build_dit(case.meta, weights.weights())
    num_blocks = _count(case, r"inputs/(block\d+)/noise")
    num_clips_frames = case["inputs/audio_feat/0"].shape[-1]
    infer_frames = _infer_frames(case.path.name, num_clips_frames)
    window = infer_frames // 4
    schedule = flow_schedule(case.meta["steps"], shift=case.meta["shift"])
    if "mid/sigmas" in case:
        assert max_error(torch.tensor(schedule.sigmas), case["mid/sigmas"]) <= 1e-6
    sigmas = schedule.sigmas
    driver = Driver(
        model, case["inputs/context"], tuple(case.meta["lat"]), window, list(schedule.timesteps)
    )
    first = _motion_source(case, golden)
    motion = first["mid/prefill0/motion_latents"][0][:, -19:]
    ref = (case if "mid/prefill0/ref_latents" in case else first)["mid/prefill0/ref_latents"][0]
    sink = driver.new_sink()
    model.prefill(ref, motion, driver.text, sink)
    _check_sink(sink, case, 0)
    mask = None
    if "mid/actor_mask_processed" in case:
        mask = case["mid/actor_mask_processed"][:, :3].flatten(2)
    blocks_per_clip = window // 3
    for b in range(num_blocks):
        if b == blocks_per_clip and "mid/prefill1/ref_latents" in case:
            motion = case["mid/prefill1/motion_latents"][0][:, -19:]
            model.prefill(case["mid/prefill1/ref_latents"][0], motion, driver.text, sink)
            _check_sink(sink, case, 1)
        _run_block(driver, case, b, sigmas, sink, mask)


def _infer_frames(file_name: str, total_frames: int) -> int:
    m = re.search(r"infer(\d+)", file_name)
    return int(m[1]) if m else 24 if total_frames % 24 == 0 else total_frames


def _run_block(driver, case, b, sigmas, sink, mask) -> None:
    prefix = f"block{b:02d}"
    x = case[f"inputs/{prefix}/noise"]
    features = _features(case, b)
    for step in range(len(sigmas) - 1):
        distance = int(case["inputs/relative_dist"][b, step])
        v = driver.velocity(
            x, block=b, step=step, sink=sink, distance=distance, features=features, mask=mask
        )
        x = x + (sigmas[step + 1] - sigmas[step]) * v
        for kind, got, tolerance in (("noise_pred", v, 2e-5), ("latent", x, 1e-5)):
            name = f"outputs/{prefix}/step{step}/{kind}"
            if name in case:
                assert max_error(got, case[name]) <= tolerance, name
    _check_rings(driver, case, b)


def _features(case, b):
    name = f"inputs/block{b:02d}/audio"
    return case[name] if name in case else case["inputs/audio_feat/0"][..., 12 * b : 12 * b + 12]


def _check_rings(driver, case, b) -> None:
    pattern = rf"mid/kv_after_block{b:02d}/step(\d+)/layer(\d+)/k"
    for m in filter(None, (re.fullmatch(pattern, n) for n in case.names)):
        ring = driver.rings[int(m[1])]
        k, v = read_ring(ring, int(m[2]), (b + 1) * 3, driver.model.config)
        expected = case[m[0]][0]
        assert max_error(k, expected[: k.shape[0]]) <= 2e-5, m[0]
        assert max_error(v, case[m[0][:-1] + "v"][0, : v.shape[0]]) <= 2e-5, m[0]


@torch.no_grad()
def test_window_of_eight_latents(golden):
    """Case 06 runs two blocks of its only clip; the zero latents after them are its bug, not ours."""
    case, weights = golden("case06"), golden("case05_model")
    model = build_dit(weights.meta, weights.weights())
    sigmas = flow_schedule(4).sigmas
    driver = Driver(
        model,
        case["inputs/context"],
        tuple(weights.meta["lat"]),
        8,
        list(flow_schedule(4).timesteps),
    )
    motion = case["mid/prefill0/motion_last19"][0]
    sink = driver.new_sink()
    model.prefill(case["mid/prefill0/ref_latents"][0], motion, driver.text, sink)
    for b in range(_count(case, r"inputs/(block\d+)/noise")):
        _run_block(driver, case, b, sigmas, sink, None)
