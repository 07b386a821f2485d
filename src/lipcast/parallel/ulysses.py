"""Ulysses: the ranks of a group share the tokens of a pass, and attention shares the heads.

`apply_ulysses(model, group)` adds hooks to a transformer. Every rank carries its part of the tokens of each
latent frame through the layers; around self-attention an exchange gives it all tokens of its part of the
heads, so that rings and sink hold this part only. Parts may differ by one token and by one head; nothing is
padded. Every rank returns the whole velocity. Source: DeepSpeed Ulysses (arXiv:2309.14509).

Legend: G latent frames of all lanes, S tokens per latent frame, s those of this rank, N heads, n those of
this rank, d head size, D model width, P patch size, U ranks of the group, X stacked tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lipcast.models.audio import AudioConditioning
from lipcast.models.dit import DiT, SelfAttend
from lipcast.models.layers import QueryKeyNorms


class TokenExchange:
    """Exchanges tokens for heads among the ranks of one group."""

    def __init__(self, group: dist.ProcessGroup, num_heads: int) -> None:
        self._group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.heads = self.part_lengths(num_heads)
        """Number of heads of each rank."""

    def part_lengths(self, count: int) -> list[int]:
        """Return how many of `count` tokens or heads each rank has; the first ranks have one more."""
        share, more = divmod(count, self.size)
        return [share + (rank < more) for rank in range(self.size)]

    def own_part(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return the tokens of this rank."""
        parts: tuple[Tensor, ...] = x.split(self.part_lengths(x.shape[dim]), dim=dim)
        return parts[self.rank]

    def heads_for_tokens(self, x_XGsNd: Tensor, num_tokens: int) -> Tensor:
        """Exchange all heads of this rank's tokens for all tokens of its heads, [X, G, S, n, d]."""
        lengths = self.part_lengths(num_tokens)
        outer, frames, _, _, size = x_XGsNd.shape
        shapes = [(outer, frames, length, self.heads[self.rank], size) for length in lengths]
        return torch.cat(self._exchange(x_XGsNd.split(self.heads, dim=3), shapes), dim=2)

    def tokens_for_heads(self, x_GSnd: Tensor) -> Tensor:
        """Exchange all tokens of this rank's heads for all heads of its tokens, [G, s, N, d]."""
        lengths = self.part_lengths(x_GSnd.shape[1])
        frames, _, _, size = x_GSnd.shape
        shapes = [(frames, lengths[self.rank], heads, size) for heads in self.heads]
        return torch.cat(self._exchange(x_GSnd.split(lengths, dim=1), shapes), dim=2)

    def whole(self, x_GsP: Tensor, num_tokens: int) -> Tensor:
        """Return [G, S, P] with the tokens of every rank."""
        frames, _, width = x_GsP.shape
        shapes = [(frames, length, width) for length in self.part_lengths(num_tokens)]
        return torch.cat(self._exchange([x_GsP] * self.size, shapes), dim=1)

    def _exchange(self, sent: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Send one tensor to every rank; return one of the given shape from each."""
        flat = torch.cat([x.reshape(-1) for x in sent])
        sizes = [int(torch.Size(shape).numel()) for shape in shapes]
        received = flat.new_empty(sum(sizes))
        dist.all_to_all_single(received, flat, sizes, [x.numel() for x in sent], group=self._group)
        parts = received.split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class _SplitPass:
    """The hooks of one model. State: tokens per latent frame of the current pass."""

    def __init__(self, model: DiT, exchange: TokenExchange) -> None:
        self._exchange = exchange
        self._num_tokens = 0
        for layer, block in enumerate(model.layers):
            hook = self._enter if layer == 0 else self._attend_apart
            block.register_forward_pre_hook(hook)
        model.audio_injector.register_forward_pre_hook(self._split_mask)
        model.head.register_forward_hook(self._join)

    def _enter(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x_GSD, *rest = args
        self._num_tokens = x_GSD.shape[1]
        return self._attend_apart(block, (self._exchange.own_part(x_GSD), *rest))

    def _attend_apart(self, _block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x_GsD, rows_G6D, self_attend, text = args
        return x_GsD, rows_G6D, self._around(self_attend), text

    def _around(self, self_attend: SelfAttend) -> SelfAttend:
        def attend(
            q_GsNd: Tensor, k_GsNd: Tensor, v_GsNd: Tensor, norms: QueryKeyNorms | None
        ) -> Tensor:
            if norms is not None:  # they are over all heads, which this rank has now
                q_GsNd, k_GsNd = norms(q_GsNd, k_GsNd)
            stacked = torch.stack((q_GsNd, k_GsNd, v_GsNd))
            q, k, v = self._exchange.heads_for_tokens(stacked, self._num_tokens)
            return self._exchange.tokens_for_heads(self_attend(q, k, v, None))

        return attend

    def _split_mask(self, _injector: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        index, x_GsD, audio = args
        assert isinstance(audio, AudioConditioning)
        if audio.mask_AFS is None:
            return index, x_GsD, audio
        return index, x_GsD, replace(audio, mask_AFS=self._exchange.own_part(audio.mask_AFS, dim=2))

    def _join(self, _head: nn.Module, _args: Any, patches_GsP: Tensor) -> Tensor:
        return self._exchange.whole(patches_GsP, self._num_tokens)


def apply_ulysses(model: DiT, group: dist.ProcessGroup) -> int:
    """Split every pass of `model` over the ranks of `group`; returns the heads that stay here.

    All ranks make the same passes in the same order. Rings and sink must be made for so many heads.
    """
    exchange = TokenExchange(group, model.config.num_heads)
    assert exchange.size <= model.config.num_heads, "the planner gives every rank a head"
    _SplitPass(model, exchange)
    return exchange.heads[exchange.rank]
