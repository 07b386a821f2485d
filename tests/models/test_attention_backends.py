"""Every back end of attention against its library's documented call, and the merging of parts.

The fakes have the signatures of the published wheels (fa3-fwd 0.0.3, nvidia-cudnn-frontend 1.32, xformers
0.0.35), check the layout that these ask for, and compute by the definition in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import attended
from torch import Tensor

from lipcast.config.gpu_options import AttentionName, GpuOptions
from lipcast.config.models import DiTConfig
from lipcast.errors import UsageError
from lipcast.lab import doctor
from lipcast.models import attention_backends
from lipcast.models.attention import merge_parts
from lipcast.models.attention_backends import BACKENDS, SDPA, AttentionBackend, exact_part
from lipcast.models.kernels import choice
from lipcast.models.kernels.choice import attention_outlook, choose_kernels
from lipcast.models.kernels.fused import FusedKernels
from lipcast.models.kernels.plain import Kernels

BF16 = torch.bfloat16
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
HOPPER, ADA, BLACKWELL = (9, 0), (8, 9), (12, 0)
NAMES: tuple[AttentionName, ...] = ("fa3", "cudnn", "xformers")
Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def by_definition(q_BTNd: Tensor, k_BSNd: Tensor, v_BSNd: Tensor) -> tuple[Tensor, Tensor]:
    """o [B, T, N, d] in the dtype of q; log-sum-exp [B, N, T], float32."""
    batch, tokens, heads, size = q_BTNd.shape
    assert k_BSNd.shape == v_BSNd.shape == (batch, k_BSNd.shape[1], heads, size)
    assert q_BTNd.dtype == k_BSNd.dtype == v_BSNd.dtype == BF16
    scores = torch.einsum("btnd,bsnd->bnts", q_BTNd.double(), k_BSNd.double()) * size**-0.5
    out = torch.einsum("bnts,bsnd->btnd", scores.softmax(-1), v_BSNd.double())
    return out.to(BF16), scores.logsumexp(-1).float().reshape(batch, heads, tokens)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False,
    qv: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0,
    num_splits: int = 1, pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    assert softmax_scale is None and not causal and window_size == (-1, -1) and q.stride(-1) == 1
    out, lse = by_definition(q, k, v)
    return (out, lse) if return_attn_probs else out


def sdpa_torch(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, is_causal: bool = False,
    causal_bottom_right: bool = False, window_left: int = -1, window_right: int = -1,
    sinks: Any = None, seq_len_q: Any = None, seq_len_kv: Any = None, cu_seqlens_q: Any = None,
    cu_seqlens_kv: Any = None, max_seqlen_q: int = 0, max_seqlen_kv: int = 0,
    return_lse: bool = False,
) -> Any:  # fmt: skip
    assert scale is None and not is_causal and query.ndim == 4
    assert all(x.stride(-1) == 1 and x.data_ptr() % 16 == 0 for x in (query, key, value))
    out, lse = by_definition(*(x.transpose(1, 2) for x in (query, key, value)))
    return (out.transpose(1, 2), lse[..., None]) if return_lse else out.transpose(1, 2)


def memory_efficient_attention_partial(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None, p: float = 0.0,
    scale: float | None = None, *, op: Any = None, output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert attn_bias is None and p == 0.0 and scale is None and op is None
    assert output_dtype in (None, query.dtype)
    return by_definition(query, key, value)


FUNCTIONS: dict[AttentionName, Callable[..., Any]] = {
    "fa3": flash_attn_func,
    "cudnn": sdpa_torch,
    "xformers": memory_efficient_attention_partial,
}


def install(monkeypatch: pytest.MonkeyPatch, name: AttentionName) -> AttentionBackend:
    """Put the fake library where the back end imports it from."""
    backend = BACKENDS[name]
    parts = backend.module.split(".")
    for length in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:length]))
        module.__spec__ = type(sys.__spec__)(module.__name__, None)  # type: ignore[misc]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    setattr(module, FUNCTIONS[name].__name__, FUNCTIONS[name])
    return backend


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("name", NAMES)
def test_a_back_end_computes_attention_and_its_log_sum_exp(
    name: AttentionName, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = install(monkeypatch, name)
    q, k, v = drawn(2, 5, 3, 16), drawn(2, 9, 3, 16, seed=1), drawn(2, 9, 3, 16, seed=2)
    for found, expected in zip(backend.attend_part(q, k, v), exact_part(q, k, v), strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert relative(found, expected) < 2.0**-8
    assert backend.obstacle(CPU, HOPPER, dtype=BF16, head_dim=128) == ""


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from([1e-3, 1.0, 30.0]))
def test_parts_merge_to_the_whole(counts: list[int], magnitude: float) -> None:
    q, k, v = (
        x.float() for x in (drawn(4, 3, 16), *(drawn(sum(counts), 3, 16, seed=n) for n in (1, 2)))
    )
    q = q * magnitude
    parts = [
        tuple(x[0] for x in exact_part(q[None], *pair))
        for pair in zip(
            (x[None] for x in k.split(counts)), (x[None] for x in v.split(counts)), strict=True
        )
    ]
    whole = exact_part(q[None], k[None], v[None])[0][0]
    assert torch.allclose(merge_parts(parts), whole, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_the_fused_merge_is_the_plain_one(num_parts: int, dtype: torch.dtype) -> None:
    parts = [
        (
            drawn(5, 3, 16, seed=n).to(dtype),
            torch.tensor([-40.0, 0.0, 40.0])[:, None] * n + torch.rand(3, 5),
        )
        for n in range(num_parts)
    ]
    outputs, lse = zip(*parts, strict=True)
    found = torch.ops.lipcast.merge_parts(list(outputs), list(lse))
    expected = merge_parts(parts)
    assert found.dtype == expected.dtype == dtype
    assert torch.allclose(
        found.float(), expected.float(), atol=1e-6, rtol=2.0**-7 if dtype == BF16 else 1e-5
    )


@pytest.mark.parametrize(
    ("name", "precision"),
    [("fa3", "bf16"), ("cudnn", "bf16"), ("xformers", "bf16"), ("fa3", "fp8")],
)
def test_ring_and_sink_are_attended_as_by_the_plain_kernels(
    name: AttentionName, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain ring part by part, where it lies; a quantised one joined with the sink."""
    backend, calls = install(monkeypatch, name), []
    counted = AttentionBackend(
        **{f: getattr(backend, f) for f in backend.__dataclass_fields__ if f != "compute"},
        compute=lambda *args: calls.append(args[2].shape[1]) or backend.compute(*args),  # type: ignore[func-returns-value]
    )
    case: dict[str, Any] = {"heads": (2, 16), "tokens": 1, "window": 4, "blocks": 2}
    expected = attended(Kernels(), precision, **case)
    for kernels in (Kernels(counted), FusedKernels(None, in_place=False, attention=counted)):
        calls.clear()
        found = attended(kernels, precision, **case)
        for index in (1, 5):
            assert relative(found[index], expected[index]) < 2.0**-7
        is_joined = precision != "bf16" or kernels.name == "plain"
        assert calls == ([3 + 6, 4 + 6] if is_joined else [3, 1, 5, 4, 1, 5])


def test_pytorch_gives_the_log_sum_exp_of_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cudnn(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        asked.append((args[3], kwargs))
        out, lse = by_definition(*(x.transpose(1, 2) for x in args[:3]))
        return out.transpose(1, 2), lse[..., None]

    def flash(*args: Any) -> tuple[Tensor, Tensor]:
        out, lse = by_definition(*(x.transpose(1, 2) for x in args))
        return out.transpose(1, 2), lse

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", cudnn)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention", flash)
    q, k = drawn(1, 5, 3, 16), drawn(1, 9, 3, 16, seed=1)
    for fused in (3, 1):
        monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_, fused=fused: fused)
        for found, expected in zip(SDPA.attend_part(q, k, k), exact_part(q, k, k), strict=True):
            assert found.shape == expected.shape and relative(found, expected) < 2.0**-8
    assert asked == [(None, {"compute_log_sumexp": True})]


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "head_dim", "why"),
    [
        ("fa3", None, BF16, 128, "it needs a CUDA device"),
        ("fa3", ADA, BF16, 128, "it is made for compute capability 9.x, this GPU has 8.9"),
        ("fa3", HOPPER, torch.float16, 128, "it computes in bfloat16, the model in float16"),
        (
            "cudnn",
            (7, 5),
            BF16,
            128,
            "it is made for compute capability 8.0 or newer, this GPU has 7.5",
        ),
        ("cudnn", HOPPER, BF16, 256, "multiple of 8 channels up to 128, the model's have 256"),
        ("xformers", BLACKWELL, torch.float32, 128, "bfloat16 and float16, the model in float32"),
        ("xformers", BLACKWELL, BF16, 36, "multiple of 8 channels up to 256, the model's have 36"),
        ("xformers", BLACKWELL, BF16, 128, ""),
    ],
)
def test_what_a_back_end_is_made_for(
    name: AttentionName, capability: Any, dtype: torch.dtype, head_dim: int, why: str
) -> None:
    found = BACKENDS[name].unfit(capability, dtype, head_dim)
    assert found.endswith(why) and bool(found) == bool(why)


def test_a_library_that_is_missing_broken_or_wrong_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def obstacle() -> str:
        return BACKENDS["fa3"].obstacle(CPU, HOPPER, dtype=BF16, head_dim=64)

    monkeypatch.setattr(attention_backends, "find_spec", lambda _: None)
    assert obstacle() == "fa3-fwd is not installed: pip install 'lipcast[fa3]'"
    monkeypatch.undo()
    install(monkeypatch, "fa3")
    module = sys.modules["fa3_fwd_interface"]
    del module.flash_attn_func
    assert "fa3-fwd does not run here: module" in obstacle()
    for wrong in (
        lambda q, k, v, return_attn_probs: (q, torch.zeros(1, 2, 48)),
        lambda q, k, v, return_attn_probs: flash_attn_func(q, k, v)[None],
        # A base-2 logarithm.
        lambda q, k, v, return_attn_probs: tuple(
            x * s for x, s in zip(by_definition(q, k, v), (1, 1.4427), strict=True)
        ),
    ):
        module.flash_attn_func = wrong  # type: ignore[attr-defined]
        assert "computes something else here" in obstacle() or "does not run here" in obstacle()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "triton_obstacle", lambda _: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: HOPPER)


@pytest.mark.usefixtures("hopper")
def test_a_gpu_takes_pytorchs_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DiTConfig()
    assert choose_kernels("auto", GPU, config).kernels.attention is SDPA
    assert choose_kernels("plain", GPU, config, attention="sdpa").kernels.attention is SDPA
    assert choose_kernels("auto", GPU, config, dtype=torch.float32).kernels.attention is None
    monkeypatch.setattr(AttentionBackend, "obstacle", lambda *_, **__: "")
    for name in NAMES:
        assert (
            choose_kernels("auto", GPU, config, attention=name).kernels.attention is BACKENDS[name]
        )
    assert "fa3: works, --attention fa3 takes it" in attention_outlook(GPU, config, Kernels())[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: ADA)
    assert choose_kernels("auto", GPU, config).kernels.attention is None
    kernels = choose_kernels("auto", GPU, config, attention="triton").kernels
    assert attention_outlook(GPU, config, kernels)[0] == "triton: reads the KV cache in place"


@pytest.mark.usefixtures("hopper")
def test_doctor_says_what_attends_and_why_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backends, "find_spec", lambda _: None)
    kernels, attention = doctor._kernels(GPU)
    assert kernels.found.startswith("triton: ")
    assert attention.topic == "GPU 0 attention" and attention.status == "ok"
    assert attention.found.startswith(
        "sdpa: PyTorch's own (cuDNN, which is fastest on this card). Others: "
    )
    for name in NAMES:
        assert (
            f"{name}: {BACKENDS[name].package} is not installed: pip install 'lipcast[{name}]'"
            in (attention.found)
        )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fa3", "attention: fa3 cannot be used, it needs a CUDA device; choose auto"),
        ("triton", "attention: triton cannot be used, it is one of the fused kernels"),
        (
            "flash4",
            "attention: expected one of auto, sdpa, triton, fa3, cudnn, xformers, got 'flash4'",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(name: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        choose_kernels("auto", CPU, DiTConfig(), attention=GpuOptions(attention=name).attention)
