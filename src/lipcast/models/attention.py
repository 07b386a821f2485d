"""Attention of one query block over keys and values.

Input: q_TNd, k_TNd, v_TNd. Output: o_TNd. The order of the keys does not matter, since they carry
their own rotary position.

Legend: T tokens, N heads, d head size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

KeyValue = tuple[Tensor, Tensor]


def attend(q_TNd: Tensor, k_TNd: Tensor, v_TNd: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v; no mask."""
    return attend_batch(q_TNd[None], k_TNd[None], v_TNd[None])[0]


def attend_batch(q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Tensor:
    """The same for a batch of independent sequences."""
    q_BNTd, k_BNTd, v_BNTd = (x.transpose(1, 2) for x in (q_BTNd, k_BTNd, v_BTNd))
    return functional.scaled_dot_product_attention(q_BNTd, k_BNTd, v_BNTd).transpose(1, 2)
