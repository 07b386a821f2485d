"""Rotary tables and the time sinusoid against the reference (case01)."""

from __future__ import annotations

import re

import pytest
import torch

from lipcast.models.rope import Rotary, RotaryTable, ref_frame, time_sinusoid


def _complex(table: RotaryTable) -> torch.Tensor:
    return torch.stack((table.cos_TP, table.sin_TP), dim=-1)


def _cases(case, pattern):
    return [(n, m) for n in case.names if (m := re.fullmatch(pattern, n))]


def test_noisy_grid_tables(golden):
    case = golden("case01")
    found = _cases(
        case, r"outputs/noisy_grid(\d+)x(\d+)x(\d+)_offset(\d+)(_d(\d+))?/(f64|fp16)_table"
    )
    assert found
    for name, m in found:
        frames, height, width, offset = (int(m[i]) for i in range(1, 5))
        expected = case[name]
        rotary = Rotary(2 * expected.shape[1], half_precision_tables=m[7] == "fp16")
        got = _complex(rotary.video(offset, frames, height, width))
        if m[7] == "fp16":
            assert (got - expected).abs().max() <= 1e-3, name
            assert ((got - expected).abs() > 0).float().mean() < 1e-3, name
            continue
        grid = (list(range(offset, offset + frames)), list(range(height)), list(range(width)))
        angles = rotary.angles(*grid)
        exact = torch.stack((angles.cos(), angles.sin()), dim=-1)
        assert (exact - expected).abs().max() <= 1e-12, name
        assert (got - expected).abs().max() <= 1e-7, name


def test_condition_grid_tables(golden):
    case = golden("case01")
    found = _cases(case, r"outputs/cond_grid(?:(\d+)x(\d+)_)?_?offset(\d+)/f64_table")
    assert found
    shape = re.search(r"noisy_grid\d+x(\d+)x(\d+)", " ".join(case.names))
    for name, m in found:
        height, width = (int(m[1]), int(m[2])) if m[1] else (int(shape[1]), int(shape[2]))
        expected = case[name]
        rotary = Rotary(2 * expected.shape[1])
        ref = rotary.video(30 + int(m[3]), 1, height, width)
        motion = rotary.motion(height, width)
        got = torch.cat((_complex(ref), _complex(motion)))
        assert (got - expected).abs().max() <= 1e-7, name


def test_apply(golden):
    case = golden("case01")
    x = case["inputs/apply/x"][0]
    for kind in ("f64", "fp16"):
        name = next(n for n in case.names if n.endswith(f"offset9/{kind}_table"))
        table = case[name].float()
        got = RotaryTable(table[..., 0], table[..., 1]).apply(x)
        assert (got - case[f"outputs/apply_{kind}_table/y"][0]).abs().max() <= 1e-6


def test_ref_position_rule(golden):
    for g, distance, shift, position in golden("case01")["outputs/ref_position_rule"].tolist():
        assert ref_frame(g, distance) == position == 30 + shift


def test_sinusoid(golden):
    case = golden("case01")
    expected = case["outputs/sinusoid/emb256"]
    got = time_sinusoid(case["inputs/sinusoid/t"], expected.shape[1])
    assert (got - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("frame", [45_000, 10_000_000])
def test_positions_have_no_end(frame):
    near, far = Rotary(32).video(0, 3, 2, 2), Rotary(32).video(frame, 3, 2, 2)
    assert far.cos_TP.shape == near.cos_TP.shape

    # Rotation by a relative distance is the same anywhere: check with two frames one apart.
    def step(t: RotaryTable) -> torch.Tensor:
        z = torch.complex(t.cos_TP, t.sin_TP)
        return z[4:8] * z[:4].conj()

    assert (step(near) - step(far)).abs().max() < 1e-5
