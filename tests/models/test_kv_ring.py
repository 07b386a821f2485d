"""Any window, any blocks: the ring keeps the newest frames, within its codec's error, in exactly its
bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipcast.config.geometry import Geometry
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.precision import KV_PRECISIONS, KVPrecision
from lipcast.errors import UsageError
from lipcast.models.kv_codec import kv_codec
from lipcast.models.kv_ring import KVRing, Positions, ResidentRing, RingLayout, RingPlanes
from lipcast.planning import sizes
from profiles import examples

HEADS, TOKENS, LAYERS = 2, 3, 2
CPU = torch.device("cpu")

windows = st.integers(1, 9)
precisions = st.sampled_from(KV_PRECISIONS)
head_dims = st.sampled_from([2, 16, 64, 96, 128])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


def tokens_of(first: int, count: int, head_dim: int, dtype: torch.dtype, salt: int) -> Tensor:
    """Different for every frame, whatever block it comes in; a frame's size varies by 2^±20."""
    frames = []
    for frame in range(first, first + count):
        generator = torch.Generator().manual_seed(1000 * salt + frame)
        x = torch.randn(TOKENS, HEADS, head_dim, generator=generator)
        frames.append((x + salt) * 2.0 ** (7 * frame % 41 - 20))
    return torch.cat(frames).to(dtype)


def read(
    ring: KVRing, layer: int, next_frame: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    shape = (ring.num_tokens(next_frame), HEADS, head_dim)
    k, v = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
    ring.read_into(layer, next_frame, k, v)
    return k, v


def largest_error(x: Tensor, precision: KVPrecision, out: torch.dtype) -> Tensor:
    """What the codec promises, as in its docstring, and one rounding to the output's dtype."""
    magnitude = x.abs()
    rounding = magnitude * torch.finfo(out).eps
    if precision in ("fp32", "bf16"):
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        return (x.to(dtype).to(out).float() - x).abs()
    if precision == "fp8":
        return magnitude / 16 + magnitude.amax(-1, keepdim=True) / 2**18 + rounding
    groups = x.unflatten(-1, (-(-x.shape[-1] // 64), -1))
    lowest, highest = groups.aminmax(dim=-1, keepdim=True)
    bound = (highest - lowest) / 29 + groups.abs().amax(-1, keepdim=True) / 2**7
    return bound.expand_as(groups).flatten(-2) + rounding


@settings(max_examples=examples(60), deadline=None)
@given(windows, st.data(), st.integers(0, 5), precisions, head_dims, dtypes)
def test_the_newest_frames_come_back(
    window: int,
    data: st.DataObject,
    start: int,
    precision: KVPrecision,
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    codec = kv_codec(precision, num_heads=HEADS, head_dim=head_dim)
    layout = RingLayout(codec, window, TOKENS)
    ring = KVRing.allocate(layout, num_layers=LAYERS, device=CPU, start_frame=start)
    following = start
    for count in data.draw(st.lists(st.integers(1, window), min_size=1, max_size=6)):
        for layer in range(LAYERS):
            new = (tokens_of(following, count, head_dim, dtype, 2 * layer + i) for i in range(2))
            ring.write(layer, following, *new)
        following += count
        kept = range(max(start, following - window), following)
        for layer in range(LAYERS):
            both = read(ring, layer, following, head_dim, dtype)
            for i, got in enumerate(both):
                expected = [tokens_of(f, 1, head_dim, dtype, 2 * layer + i) for f in kept]
                check_frames(got, expected, precision)


def check_frames(got: Tensor, expected: list[Tensor], precision: KVPrecision) -> None:
    """Every expected frame is there once, in any order."""
    remaining = list(got.split(TOKENS))
    assert len(remaining) == len(expected)
    for frame in expected:
        bound = largest_error(frame.float(), precision, got.dtype)
        found = [
            i for i, x in enumerate(remaining) if ((x.float() - frame.float()).abs() <= bound).all()
        ]
        assert found, precision
        del remaining[found[0]]


@settings(deadline=None)
@given(windows, precisions, head_dims, st.integers(1, 6))
def test_bytes_are_those_of_the_plan(
    window: int, precision: KVPrecision, head_dim: int, side: int
) -> None:
    config = DiTConfig(dim=HEADS * head_dim, num_heads=HEADS, num_layers=LAYERS)
    height = 64 * side
    geometry = Geometry.of(
        config, VAEConfig(), height=height, width=64, infer_frames=4 * max(3, window)
    )
    codec = kv_codec(precision, num_heads=HEADS, head_dim=head_dim)
    per_token = 2 * sum(plane.num_bytes for plane in codec.planes)
    assert per_token == sizes.kv_bytes_per_token(config, precision)
    layout = RingLayout(codec, geometry.window, geometry.tokens_per_frame)
    assert layout.num_bytes == sizes.ring_layer_bytes(config, geometry, precision)
    asked: list[int] = []

    def allocate(num_bytes: int) -> Tensor:
        asked.append(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8)

    ring = ResidentRing(layout, num_layers=LAYERS, allocate=allocate)
    assert asked == [layout.num_bytes] * LAYERS and ring.num_bytes == sum(asked)


@settings(deadline=None)
@given(windows, precisions, st.sampled_from([2, 64, 96]))
def test_planes_tile_the_buffer(window: int, precision: KVPrecision, head_dim: int) -> None:
    """Every byte belongs to one plane, and the bytes of a position are those that the layout names."""
    codec = kv_codec(precision, num_heads=HEADS, head_dim=head_dim)
    layout = RingLayout(codec, window, TOKENS)
    buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    planes = layout.view(buffer)
    tensors = (*planes.keys, *planes.values)
    assert sum(x.nbytes for x in tensors) == layout.num_bytes
    for x in tensors:
        x[window - 1].view(torch.uint8).fill_(7)
    for begin, count in layout.byte_ranges((window - 1, 1)):
        assert (buffer[begin : begin + count] == 7).all()
        buffer[begin : begin + count] = 0
    assert not buffer.any()


@given(windows, st.sampled_from(["fp32", "bf16"]))
def test_plain_keys_of_all_positions_lie_together(window: int, precision: KVPrecision) -> None:
    """They can be attended to as one sequence, without a copy."""
    layout = RingLayout(kv_codec(precision, num_heads=HEADS, head_dim=16), window, TOKENS)
    planes = layout.view(torch.zeros(layout.num_bytes, dtype=torch.uint8))
    for (plane,) in (planes.keys, planes.values):
        assert plane.flatten(0, 1).data_ptr() == plane.data_ptr() and plane.is_contiguous()


class Recorder:
    """A storage that says what was asked of it."""

    def __init__(self, layout: RingLayout) -> None:
        self.buffers = torch.zeros(LAYERS, layout.num_bytes, dtype=torch.uint8)
        self.layout, self.num_bytes = layout, self.buffers.nbytes
        self.written: list[tuple[int, list[Positions]]] = []
        self.announced: list[Mapping[str, Sequence[Positions]]] = []

    def planes(self, layer: int, **positions: Sequence[Positions]) -> RingPlanes:
        self.announced.append(positions)
        return self.layout.view(self.buffers[layer])

    def mark_dirty(self, layer: int, positions: list[Positions]) -> None:
        self.written.append((layer, positions))


def test_a_storage_is_told_which_positions_changed() -> None:
    layout = RingLayout(kv_codec("fp8", num_heads=HEADS, head_dim=16), 5, TOKENS)
    storage = Recorder(layout)
    ring = KVRing(layout, storage, start_frame=4)
    for first in (4, 7):
        before = storage.buffers.clone()
        x = tokens_of(first, 3, 16, torch.float32, 1)
        ring.write(1, first, x, x)
        changed = before != storage.buffers
        assert changed[1].any() and not changed[0].any()
        for run in storage.written[-1][1]:
            for begin, size in layout.byte_ranges(run):
                changed[1, begin : begin + size] = False
        assert not changed.any()
    assert storage.written == [(1, [(0, 3)]), (1, [(3, 2), (0, 1)])]
    assert storage.announced == [
        {"overwritten": [(0, 3)], "overwritten_next": [(3, 2), (0, 1)]},
        {"overwritten": [(3, 2), (0, 1)], "overwritten_next": [(1, 3)]},
    ]


def test_reading_decodes_the_filled_part_only() -> None:
    layout = RingLayout(kv_codec("fp32", num_heads=HEADS, head_dim=16), 6, TOKENS)
    ring = KVRing.allocate(layout, num_layers=1, device=CPU)
    x = tokens_of(0, 3, 16, torch.float32, 1)
    ring.write(0, 0, x, -x)
    assert ring.num_tokens(3) == 3 * TOKENS
    k, v = read(ring, 0, 3, 16, torch.float32)
    assert torch.equal(k, x) and torch.equal(v, -x)


@pytest.mark.parametrize("precision", ["fp8", "int4"])
@pytest.mark.parametrize("value", [0.0, 1e-30, -3.0, 6e4])
def test_constant_heads(precision: KVPrecision, value: float) -> None:
    """Neither zeros nor a head without range divides by zero."""
    codec = kv_codec(precision, num_heads=1, head_dim=64)
    x = torch.full((5, 1, 64), value)
    out = torch.empty_like(x)
    codec.decode_into(codec.encode(x), out)
    torch.testing.assert_close(out, x, rtol=2**-8, atol=1e-12)


def test_typical_error() -> None:
    """Normally distributed numbers, relative root mean square."""
    x = torch.randn(200, 4, 128, generator=torch.Generator().manual_seed(1))
    errors = {}
    for precision in ("fp8", "int4"):
        codec = kv_codec(precision, num_heads=4, head_dim=128)
        out = torch.empty_like(x)
        codec.decode_into(codec.encode(x), out)
        errors[precision] = float((out - x).norm() / x.norm())
    assert errors["fp8"] < 0.03 and errors["int4"] < 0.1, errors


@pytest.mark.parametrize("head_dim", [7, 130])
def test_a_head_that_int4_cannot_store(head_dim: int) -> None:
    with pytest.raises(UsageError, match=f"got {head_dim}; choose fp8"):
        kv_codec("int4", num_heads=1, head_dim=head_dim)
