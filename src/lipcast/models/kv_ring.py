"""What attention remembers: the KV ring of one (session, step), and the sink of condition tokens.

The ring holds keys and values of the last `window` latent frames, one slot per latent frame, in
every layer. Frame g lives at slot (g - start) mod window, so a window need not be a multiple of a
block. Keys are stored rotated. Invariant: writes of one layer come in order of frames.

Legend: L layers, W window (latent frames), S tokens per latent frame, T tokens, N heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcast.models.attention import KeyValue
from lipcast.models.rope import RotaryTable


class KVRing:
    """Keys and values of one denoising step of one session."""

    def __init__(self, keys_LWSNd: Tensor, values_LWSNd: Tensor, *, start_frame: int = 0) -> None:
        assert keys_LWSNd.shape == values_LWSNd.shape
        self._keys_LWSNd = keys_LWSNd
        self._values_LWSNd = values_LWSNd
        self._start_frame = start_frame

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        window: int,
        tokens_per_frame: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        start_frame: int = 0,
    ) -> KVRing:
        """An empty ring; `start_frame` is the first latent frame that will be written."""
        shape = (num_layers, window, tokens_per_frame, num_heads, head_dim)
        keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        return cls(keys, values, start_frame=start_frame)

    @property
    def window(self) -> int:
        return self._keys_LWSNd.shape[1]

    @property
    def num_bytes(self) -> int:
        return 2 * self._keys_LWSNd.nbytes

    def write(self, layer: int, first_frame: int, k_TNd: Tensor, v_TNd: Tensor) -> None:
        """Store the frames from `first_frame` on in place of the oldest ones."""
        slots = self._slots(first_frame, k_TNd.shape[0])
        frames = (len(slots), *self._keys_LWSNd.shape[2:])
        runs = _consecutive_runs(slots)
        for buffer, tokens in (
            (self._keys_LWSNd[layer], k_TNd),
            (self._values_LWSNd[layer], v_TNd),
        ):
            new = tokens.view(frames)
            for begin, slot, count in runs:
                buffer[slot : slot + count] = new[begin : begin + count]

    def read(self, layer: int, next_frame: int) -> KeyValue:
        """k_TNd and v_TNd of every frame kept, `next_frame` being the first not written yet."""
        filled = min(self.window, next_frame - self._start_frame)
        return (
            self._keys_LWSNd[layer, :filled].flatten(0, 1),
            self._values_LWSNd[layer, :filled].flatten(0, 1),
        )

    def _slots(self, first_frame: int, num_tokens: int) -> list[int]:
        num_frames = num_tokens // self._keys_LWSNd.shape[2]
        assert num_frames <= self.window, "a block does not fit the window"
        start = first_frame - self._start_frame
        assert start >= 0, "a frame before the ring's first"
        return [(start + i) % self.window for i in range(num_frames)]


def _consecutive_runs(slots: list[int]) -> list[tuple[int, int, int]]:
    """(index, slot, count) of each run without a wrap."""
    wrap = next((i for i in range(1, len(slots)) if slots[i] == 0), len(slots))
    runs = [(0, slots[0], wrap)]
    if wrap < len(slots):
        runs.append((wrap, 0, len(slots) - wrap))
    return runs


@dataclass(frozen=True, slots=True)
class Sink:
    """Keys and values of the condition tokens, prefilled once per anchor.

    Only the reference moves in time, so its keys are kept unrotated; the motion's keys are
    rotated already. Values: [reference | motion].
    """

    ref_keys_LSNd: Tensor
    motion_keys_LTNd: Tensor
    values_LTNd: Tensor

    @property
    def num_bytes(self) -> int:
        return self.ref_keys_LSNd.nbytes + self.motion_keys_LTNd.nbytes + self.values_LTNd.nbytes

    def place(self, table: RotaryTable) -> PlacedSink:
        """The sink with its reference at the positions of `table`; done once per block."""
        placed_LSNd = torch.empty_like(self.ref_keys_LSNd)
        for layer, keys_SNd in enumerate(self.ref_keys_LSNd):
            placed_LSNd[layer] = table.apply(keys_SNd)
        return PlacedSink(self, placed_LSNd)


@dataclass(frozen=True, slots=True)
class PlacedSink:
    """A sink as one block sees it."""

    sink: Sink
    ref_keys_LSNd: Tensor

    def parts(self, layer: int) -> list[KeyValue]:
        """The reference's and the motion's keys and values."""
        num_ref = self.ref_keys_LSNd.shape[1]
        values = self.sink.values_LTNd[layer]
        return [
            (self.ref_keys_LSNd[layer], values[:num_ref]),
            (self.sink.motion_keys_LTNd[layer], values[num_ref:]),
        ]
