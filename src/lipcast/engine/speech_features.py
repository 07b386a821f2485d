"""Speech features, block by block, from 16 kHz pieces of any size.

Duty: normalise, pad with silence to whole blocks, run wav2vec2 in windows, resample to 25 Hz.
Inputs: float32 pieces. Outputs: [layers, dim, frames per block] for block 0, 1, 2 …, in order.
Invariants: how the sound is cut into pieces changes nothing; memory does not grow with its length.
A file up to WHOLE_FILE_S is encoded in one pass, exactly. Longer and live sound goes in overlapping
windows: the bounds are at FILE_WINDOW and `live_window`.

Shapes: N samples, G layers + 1, T features at 50 Hz, D width, F frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.models.speech import (
    FEATURE_RATE,
    FEATURES_PER_FRAME,
    MIDDLE_RATE,
    SpeechEncoder,
    interpolate,
    middle_index,
    middle_ratio,
    normalise,
)
from lipcast.planning.sizes import SPEECH_PIECE_S, SPEECH_WINDOW_S

WHOLE_FILE_S = SPEECH_WINDOW_S
_SAMPLES_PER_FRAME = SAMPLE_RATE // VIDEO_FPS
_LOCAL_PIECE = SPEECH_PIECE_S * FEATURE_RATE
"""Features per call of the local stage, whose memory this bounds (0.3 GB for the large model)."""


@dataclass(frozen=True, slots=True)
class Window:
    """One pass of the transformer layers, in features: kept ones, and those seen on either side.

    Of a live voice more than `keep` are kept where the block that is asked for needs more.
    """

    keep: int
    left: int
    right: int


FILE_WINDOW = Window(keep=40 * FEATURE_RATE, left=10 * FEATURE_RATE, right=10 * FEATURE_RATE)
"""Window for a file longer than WHOLE_FILE_S. Bound: 0.25, measured 0.10 to 0.21 on 70 to 300 s of speech
(RMS of the difference to one pass over the RMS movement of the features, worst layer, embedded model).
"""


def live_window(video_frames_per_block: int) -> Window:
    """Return a window of 8 s before a block and 0.24 s after it; a live session waits 0.27 s for it.

    Bound, as at FILE_WINDOW: 0.25 on utterances of up to 8 s (measured 0.19 to 0.22), 0.45 on
    minutes (0.34 to 0.41). The attention of the embedded model spans all it gets, most of which
    is no matter of the lips: finished videos follow the voice as closely as from the whole file
    (correlation of the mouth 0.861 and 0.876 from these windows, 0.862 and 0.880 from one pass).
    """
    return Window(video_frames_per_block * FEATURES_PER_FRAME, 8 * FEATURE_RATE, 12)


@dataclass(frozen=True, slots=True)
class Loudness:
    """Mean and variance of `count` samples, to normalise by."""

    mean: float
    variance: float
    count: int = 0

    def including(self, wave_N: Tensor) -> Loudness:
        """Return the statistics with these samples added, in float64."""
        if not len(wave_N):
            return self
        added = wave_N.double()
        total = self.count + len(added)
        shift = float(added.mean()) - self.mean
        squares = self.variance * self.count + float(added.var(correction=0)) * len(added)
        squares += shift * shift * self.count * len(added) / total
        return Loudness(self.mean + shift * len(added) / total, squares / total, total)


LIVE_LEAD = 2 / 3
"""Read-ahead of a live voice in features (13 ms), at the limit ratio of 5/3.
With align_corners a clip's features run ahead of its frames, by nothing at the first and by 2/3 to
2 at the last, 4/3 on average over all lengths; models are trained on that. Its mean is kept: without
it the mouth follows less closely (correlation 0.83 and 0.84 for 0.86 and 0.88).
"""

LIVE_START = Loudness(mean=0.0, variance=0.08**2, count=SAMPLE_RATE // 2)
"""Assumed statistics of a live voice before it begins: half a second at the usual level of speech.
Without it the noise before the first word would be raised to the level of speech."""


@dataclass(slots=True)
class StreamState:
    """All that a stream remembers, as numbers and tensors: what a resume must store."""

    loudness: Loudness
    num_samples: int = 0
    """Received so far."""
    finished: bool = False
    pieces: list[Tensor] = field(default_factory=list)
    """Samples not yet behind the local stage; the first is that of feature `num_local`."""
    num_measured: int = 0
    """Samples that `loudness` knows of."""
    num_local: int = 0
    """Features that the local stage has made."""
    local: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """The last of them, [T, D]: context for the layers."""
    num_layered: int = 0
    """Features that the transformer layers have made."""
    layers: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    """The last of them, [G, T, D]: what coming blocks need."""
    next_block: int = 0


class FeatureStream:
    """The features of one voice, as `push` … `finish` … `take`.

    num_samples, mean, std: length (16 kHz samples) and statistics of a whole file. Without them
    the sound is live: the length ratio is its limit, the statistics are of what was heard.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        *,
        video_frames_per_block: int,
        num_samples: int | None = None,
        mean: float | None = None,
        std: float | None = None,
        window: Window | None = None,
        state: StreamState | None = None,
        first_block: int = 0,
    ) -> None:
        """`first_block`: the first to be taken, of a whole file, whose samples are all pushed."""
        given = LIVE_START if mean is None or std is None else Loudness(mean, std * std)
        self.state = state or StreamState(given)
        self._measuring = given is LIVE_START
        self._encoder = encoder
        self._config = encoder.config
        self._video_frames_per_block = video_frames_per_block
        self._num_samples = num_samples
        self.window = window or self._fitting_window()
        self._device = next(encoder.parameters()).device
        self._num_unwanted = self._skip_to(first_block) if first_block else 0
        """Samples still to be pushed that no feature needs."""

    def push(self, wave_N: NDArray[np.float32]) -> None:
        """Add a piece: float32 [n], 16 kHz mono, any n. It is copied."""
        assert not self.state.finished, "push after finish"
        self.state.num_samples += len(wave_N)
        dropped = min(self._num_unwanted, len(wave_N))
        self._num_unwanted -= dropped
        if dropped < len(wave_N):
            kept_N = np.array(wave_N[dropped:], dtype=np.float32)
            self.state.pieces.append(torch.from_numpy(kept_N))

    def finish(self) -> None:
        """Declare the sound finished: silence fills the last block."""
        self.state.finished = True

    @torch.inference_mode()
    def take(self, block: int) -> Tensor | None:
        """Return the features [G, D, F] of a block, float32 on the encoder's device; None: push more first.

        Blocks are taken in order, each once. Past the end the last feature is repeated.
        """
        before = replace(self.state)
        try:
            return self._take(block)
        except BaseException:
            self.state = before  # the call can be made again
            raise

    def _take(self, block: int) -> Tensor | None:
        state = self.state
        assert block == state.next_block, f"blocks come in order: {state.next_block}, not {block}"
        position_F = self._positions(block)
        needed = int(position_F[-1].ceil()) + 1
        while state.num_layered < needed:
            if not self._advance(needed):
                return None
        position_F = position_F.to(self._device) - self._first_layered
        features_GFD = interpolate(state.layers, position_F)
        self._release(block + 1)
        return features_GFD.transpose(1, 2).contiguous()

    def snapshot(self) -> StreamState:
        """Return a copy of the state that later calls do not change, without unused memory behind it."""
        state = self.state
        return replace(
            state,
            pieces=[torch.cat(state.pieces)] if state.pieces else [],
            local=state.local.clone(),
            layers=state.layers.clone(),
        )

    def _skip_to(self, block: int) -> int:
        """Begin with the window that holds a block; returns how many samples lie before it.

        Windows and local pieces begin where they would without the jump, so the features are equal.
        """
        assert self._num_samples is not None, "only a file can be entered in the middle"
        state, window = self.state, self.window
        state.next_block = block
        state.num_layered = int(self._positions(block)[0]) // window.keep * window.keep
        state.num_local = max(0, state.num_layered - window.left) // _LOCAL_PIECE * _LOCAL_PIECE
        return state.num_local * self._config.stride

    @property
    def _first_local(self) -> int:
        """The feature that `state.local` begins with."""
        return self.state.num_local - len(self.state.local)

    @property
    def _first_layered(self) -> int:
        """The feature that `state.layers` begins with."""
        return self.state.num_layered - self.state.layers.shape[1]

    def _fitting_window(self) -> Window:
        if self._num_samples is None:
            return live_window(self._video_frames_per_block)
        if self._num_samples > WHOLE_FILE_S * SAMPLE_RATE:
            return FILE_WINDOW
        return Window(keep=self._padded_features(self._num_samples), left=0, right=0)

    def _padded_features(self, num_samples: int) -> int:
        """Return the features of a sound that silence fills up to whole blocks."""
        block = self._video_frames_per_block * _SAMPLES_PER_FRAME
        return self._config.num_features(max(1, -(-num_samples // block)) * block)

    def _total_features(self) -> int | None:
        """Return the features of the whole sound; None while its length is not known."""
        if self._num_samples is not None:
            return self._padded_features(self._num_samples)
        return self._padded_features(self.state.num_samples) if self.state.finished else None

    def _positions(self, block: int) -> Tensor:
        """Return the positions of a block's frames among the 50 Hz features that exist [F]."""
        ratio, lead = FEATURE_RATE / MIDDLE_RATE, LIVE_LEAD
        if self._num_samples is not None:
            ratio, lead = middle_ratio(self._padded_features(self._num_samples)), 0.0
        index_F = middle_index(
            self._video_frames_per_block, first=block * self._video_frames_per_block
        )
        total = self._total_features()
        position_F = index_F.double() * ratio + lead
        return position_F if total is None else position_F.clamp(max=total - 1)

    def _advance(self, needed: int) -> bool:
        """Run one window, up to feature `needed` at least; False: its samples are not there yet."""
        state, window, total = self.state, self.window, self._total_features()
        start = state.num_layered
        kept_end = start + window.keep
        if self._num_samples is None:  # the windows of a file lie where they lie, whoever asks
            kept_end = max(kept_end, needed)
        end = kept_end + window.right
        if total is not None:
            kept_end, end = min(kept_end, total), min(end, total)
        ready = end <= self._config.num_features(state.num_samples)
        if not ready and not state.finished:
            return False
        self._extract(end)
        left = min(start, window.left)
        first = start - left - self._first_local
        local_TD = state.local[first : first + left + end - start]
        layers_GTD = self._run_layers(local_TD, cut_left=left < start, cut_right=end != total)
        kept_GTD = layers_GTD[:, left : left + kept_end - start]
        state.layers = _joined(state.layers, kept_GTD, dim=1)
        state.num_layered = kept_end
        return True

    def _run_layers(self, local_TD: Tensor, *, cut_left: bool, cut_right: bool) -> Tensor:
        """Run the layers over a window, [T, D] to [G, T, D]; a mirror stands for what is cut off.

        The positional convolution takes an edge for the end of the sound, and attention carries
        that everywhere. As far as it reaches, mirrored features hide the edge: errors fall by half.
        """
        reach = min(self._config.position_kernel // 2, len(local_TD) - 1)
        before, after = reach if cut_left else 0, reach if cut_right else 0
        mirror_TD = local_TD.flip(0)
        padded = torch.cat((mirror_TD[-1 - before : -1], local_TD, mirror_TD[1 : 1 + after]))
        return self._encoder.contextualise(padded)[:, before : before + len(local_TD)]

    def _extract(self, end: int) -> None:
        """Bring the local stage up to feature `end`."""
        state = self.state
        while state.num_local < end:
            count = min(_LOCAL_PIECE, end - state.num_local)
            made_TD = self._encoder.extract(self._read_normalised(count).to(self._device))
            state.local = _joined(state.local, made_TD, dim=0)
            state.num_local += count

    def _read_normalised(self, num_features: int) -> Tensor:
        """Return the samples of the next features, normalised, with silence after the end."""
        state, config = self.state, self._config
        count = (num_features - 1) * config.stride + config.receptive_field
        wave_N = torch.cat(state.pieces) if state.pieces else torch.zeros(0)
        state.pieces = [wave_N[num_features * config.stride :]]
        wave_N = wave_N[:count]
        if self._measuring:
            first = state.num_local * config.stride
            state.loudness = state.loudness.including(wave_N[max(0, state.num_measured - first) :])
            state.num_measured = max(state.num_measured, first + len(wave_N))
        std = state.loudness.variance**0.5
        normal_N = normalise(wave_N, mean=state.loudness.mean, std=std)
        return torch.nn.functional.pad(normal_N, (0, count - len(wave_N)))

    def _release(self, block: int) -> None:
        """Forget what no block from `block` on needs, except the last feature."""
        state = self.state
        state.next_block = block
        needed = min(int(self._positions(block)[0]), state.num_layered - 1)
        state.layers = state.layers[:, needed - self._first_layered :]
        context = max(0, state.num_layered - self.window.left)
        state.local = state.local[context - self._first_local :]


def _joined(held: Tensor, added: Tensor, *, dim: int) -> Tensor:
    return torch.cat((held, added), dim=dim) if held.numel() else added
