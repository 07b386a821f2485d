"""Fake CUDA tensors behave as a GPU's, and what is counted of them is what a GPU would do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lipcast.lab.counting import OperatorCount
from lipcast.lab.fake_cuda import DEVICE, fake_cuda


def test_devices_must_not_be_mixed() -> None:
    with fake_cuda():
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        assert (there + there).device == DEVICE
        with pytest.raises(RuntimeError, match="at least two devices"):
            here + there


@pytest.mark.parametrize("product", [functional.linear, torch.matmul])
def test_products_need_one_dtype(product: object) -> None:
    with fake_cuda():
        wide = torch.empty(4, 4, device=DEVICE)
        with pytest.raises(TypeError, match=r"one dtype, got torch\.bfloat16, torch\.float32"):
            product(wide, wide.bfloat16())  # type: ignore[operator]


def test_attention_needs_one_dtype() -> None:
    with fake_cuda():
        q = torch.empty(1, 2, 4, 8, device=DEVICE, dtype=torch.bfloat16)
        with pytest.raises(TypeError, match="one dtype"):
            functional.scaled_dot_product_attention(q, q.float(), q.float())


@pytest.mark.parametrize(
    "index",
    [
        slice(1, 3), slice(None, None, 2), slice(-2, None), 1, -1, None,
        (Ellipsis, slice(1, 2)), (Ellipsis, 0), (0, Ellipsis), (slice(None), None, 2),
        (slice(None), None, slice(0, 3)), (0, slice(1, 4), Ellipsis, None),
        (slice(None), [0, 2]), (Ellipsis, [1, 1, 0]),
    ],
)  # fmt: skip
def test_indexing_gives_the_shape_of_the_real_thing(index: object) -> None:
    real = torch.zeros(4, 5, 6)[index]  # type: ignore[index]
    with fake_cuda():
        fake = torch.empty(4, 5, 6, device=DEVICE)[index]  # type: ignore[index]
    assert (fake.device, tuple(fake.shape)) == (DEVICE, tuple(real.shape))
    assert fake.stride() == real.stride()


def test_copies_check_shapes() -> None:
    with fake_cuda():
        target = torch.empty(4, 5, device=DEVICE)
        target[1:3] = torch.ones(2, 5)
        with pytest.raises(RuntimeError, match="size of tensor"):
            target[1:3] = torch.ones(3, 5)


def test_values_of_a_device_cannot_be_read_by_numpy() -> None:
    with fake_cuda():
        found = torch.empty(2, 3, device=DEVICE)
        assert found.cpu().numpy().shape == (2, 3)
        with pytest.raises(AssertionError, match="host memory"):
            found.numpy()


def test_cuda_is_itself_again_afterwards() -> None:
    before = torch.cuda.Stream, torch.cuda.synchronize, torch.Tensor.contiguous
    with fake_cuda():
        assert torch.cuda.Stream is not before[0]
    assert (torch.cuda.Stream, torch.cuda.synchronize, torch.Tensor.contiguous) == before


# Counting


def counted(
    work: object, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> OperatorCount:
    with fake_cuda(), torch.inference_mode():
        inputs = [torch.empty(shape, device=DEVICE, dtype=dtype) for shape in shapes]
        count = OperatorCount()
        with count:
            work(*inputs)  # type: ignore[operator]
    return count


@pytest.mark.parametrize(
    ("work", "launches", "num_bytes"),
    [
        (lambda x: x[1:].view(-1).unsqueeze(0), 0, 0),
        (lambda x: x.new_empty(100), 0, 0),
        (lambda x: x.t().reshape(-1), 1, 2 * 80),
        (lambda x: x + 1, 1, 2 * 80),
        (lambda x: x + x[:1].expand(4, 5), 1, 2 * 80 + 20),
        (lambda x: x.mul_(2), 1, 2 * 80),
        (lambda x: x.zero_(), 1, 80),
        (lambda x: x[:2].copy_(x[2:]), 1, 2 * 40),
        (lambda x: x.to(torch.bfloat16), 1, 80 + 40),
        (lambda x: x.to(torch.float32), 0, 0),
        (lambda x: torch.cat((x, x)), 1, 4 * 80),
        (lambda x: torch.addcmul(x, x, x, out=x), 1, 4 * 80),
        (lambda x: torch.ones(3) + 1, 0, 0),
    ],
)
def test_launches_and_bytes(work: object, launches: int, num_bytes: int) -> None:
    total = counted(work, (4, 5)).total()
    assert (total.launches, total.elementwise_bytes) == (launches, num_bytes)


def test_copies_over_the_link_are_apart() -> None:
    total = counted(lambda x: x.cpu().to(DEVICE), (4, 5)).total()
    assert (total.launches, total.elementwise_bytes, total.link_bytes) == (2, 0, 4 * 80)


def test_arithmetic() -> None:
    def work(x: torch.Tensor, w: torch.Tensor) -> None:
        functional.linear(x, w)
        heads = x.view(1, 1, 8, 16)
        functional.scaled_dot_product_attention(heads, heads, heads)

    total = counted(work, (8, 16), (32, 16), dtype=torch.bfloat16).total()
    assert total.gemm_flop == 2 * 8 * 16 * 32
    assert total.attention_flop == 4 * 8 * 8 * 16
    assert total.elementwise_bytes == 0
    assert total.launches == 2


def test_convolutions() -> None:
    total = counted(functional.conv3d, (1, 3, 4, 6, 6), (8, 3, 3, 3, 3)).total()
    assert total.convolution_flop == 2 * 8 * 2 * 4 * 4 * 3 * 27
    assert total.elementwise_bytes == 0


def test_an_operator_of_our_own_counts_as_itself() -> None:
    """A fused kernel is one launch; attention and products are known by their names."""

    @torch.library.custom_op("lipcast_test::fused_attend", mutates_args=())
    def fused(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @fused.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    count = counted(fused, (4, 5))
    assert count.rows() == [("fused_attend", "attention", 1, 160)]
