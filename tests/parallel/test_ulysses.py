"""The exchange of tokens for heads, for every number of ranks, heads and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lipcast.parallel.ulysses import TokenExchange

HEAD_SIZE = 2


def on_threads(size: int, num_heads: int, work: Callable[[TokenExchange], None]) -> None:
    """Run `work` once for each of `size` ranks; their exchanges go through a list."""
    box: list[Sequence[Tensor]] = [()] * size
    barrier = Barrier(size, timeout=120)

    class OnThread(TokenExchange):
        def __init__(self, rank: int) -> None:
            self.size, self.rank = size, rank
            self.heads = self.part_lengths(num_heads)

        def _exchange(
            self, sent: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
        ) -> list[Tensor]:
            box[self.rank] = [part.clone() for part in sent]
            barrier.wait()
            found = [box[rank][self.rank].reshape(shape) for rank, shape in enumerate(shapes)]
            barrier.wait()
            return found

    with ThreadPoolExecutor(size) as threads:
        for done in [threads.submit(work, OnThread(rank)) for rank in range(size)]:
            done.result()


@given(st.data())
def test_every_rank_gets_all_tokens_of_its_heads_and_gives_them_back(data: st.DataObject) -> None:
    num_heads = data.draw(st.integers(1, 9))
    size = data.draw(st.integers(1, min(num_heads, 5)))
    num_tokens, frames = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 2))
    whole_XGSNd = torch.randn(3, frames, num_tokens, num_heads, HEAD_SIZE)

    def check(exchange: TokenExchange) -> None:
        own_XGsNd = exchange.own_part(whole_XGSNd, dim=2)
        first = sum(exchange.heads[: exchange.rank])
        heads = slice(first, first + exchange.heads[exchange.rank])
        got_XGSnd = exchange.heads_for_tokens(own_XGsNd, num_tokens)
        assert torch.equal(got_XGSnd, whole_XGSNd[:, :, :, heads])
        assert torch.equal(exchange.tokens_for_heads(got_XGSnd[0]), own_XGsNd[0])
        joined = exchange.whole(own_XGsNd[0].flatten(2), num_tokens)
        assert torch.equal(joined, whole_XGSNd[0].flatten(2))

    on_threads(size, num_heads, check)


@given(st.integers(0, 200), st.integers(1, 50))
def test_parts_differ_by_one_at_most_and_the_first_have_more(count: int, size: int) -> None:
    exchange = TokenExchange.__new__(TokenExchange)
    exchange.size = size
    parts = exchange.part_lengths(count)
    assert sum(parts) == count and len(parts) == size
    assert max(parts) - min(parts) <= 1 and parts == sorted(parts, reverse=True)
