"""Attention over parts: one query block, keys and values that lie in several places.

Input: q_TNd and a sequence of (k_TNd, v_TNd). Output: o_TNd. The order of the parts does not matter,
since keys carry their own rotary position.

Legend: T tokens, N heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

KeyValue = tuple[Tensor, Tensor]


def attend(q_TNd: Tensor, parts: Sequence[KeyValue]) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v over all parts together; no mask."""
    k_TNd = parts[0][0] if len(parts) == 1 else torch.cat([k for k, _ in parts])
    v_TNd = parts[0][1] if len(parts) == 1 else torch.cat([v for _, v in parts])
    return attend_batch(q_TNd[None], k_TNd[None], v_TNd[None])[0]


def attend_batch(q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Tensor:
    """The same for a batch of independent sequences."""
    q_BNTd, k_BNTd, v_BNTd = (x.transpose(1, 2) for x in (q_BTNd, k_BTNd, v_BTNd))
    return functional.scaled_dot_product_attention(q_BNTd, k_BNTd, v_BNTd).transpose(1, 2)
