"""Which attention a GPU gets, on tensors without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lipcast.models import attention
from lipcast.models.attention import attend, attend_batch, attention_kernel, cudnn_part

PLAIN = torch.nn.functional.scaled_dot_product_attention
CUDNN, FLASH = 3, 1


@pytest.mark.parametrize("capability", [None, (8, 0), (8, 9), (12, 0)])
def test_most_devices_get_the_choice_of_pytorch(capability: tuple[int, int] | None) -> None:
    assert attention_kernel(capability) is PLAIN


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (10, 3)])
@pytest.mark.parametrize("choice", [CUDNN, FLASH])
def test_cudnn_is_asked_for_the_log_sum_exp(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], choice: int
) -> None:
    asked: list[Any] = []

    def cudnn(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        asked.append((args[3], kwargs))
        return (PLAIN(*args[:3]),)

    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_: choice)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", cudnn)
    q, k, v = (torch.randn(2, count, 4, 8) for count in (5, 7, 7))
    found = attend_batch(q, k, v, capability_of=lambda _: capability)
    assert torch.equal(found, attend_batch(q, k, v))
    assert asked == ([(None, {"compute_log_sumexp": True})] if choice == CUDNN else [])


@pytest.mark.parametrize("choice", [CUDNN, FLASH])
def test_the_operators_have_these_signatures(monkeypatch: pytest.MonkeyPatch, choice: int) -> None:
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_: choice)
    with FakeTensorMode():
        q, k = (torch.empty(1, n, 4, 64, dtype=torch.bfloat16, device="cuda") for n in (5, 7))
        if choice == CUDNN:
            out = attend_batch(q, k, k, capability_of=lambda _: (9, 0))
            assert out.shape == q.shape and out.device.type == "cuda"
        out, lse = cudnn_part(q, k, k)
    assert out.shape == q.shape and lse.shape == (1, 4, 5) and lse.device.type == "cuda"


def test_pytorch_counts_its_back_ends_so() -> None:
    assert int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value) == attention._CUDNN_CHOICE


def test_one_sequence_is_a_batch_of_one() -> None:
    q, k, v = (torch.randn(count, 4, 8) for count in (5, 7, 7))
    assert torch.equal(attend(q, k, v), attend_batch(q[None], k[None], v[None])[0])
