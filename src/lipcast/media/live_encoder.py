"""Pictures and sound of a live stream as fragmented MP4, without a frame of delay.

Input: pictures and their samples, in order. Output: an initialisation segment, then a fragment per call.
Sound ends up to two AAC frames (43 ms at 48 kHz) before the pictures of a fragment, which the next has.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS
from lipcast.media.fmp4 import AUDIO_TRACK, VIDEO_TRACK, Run, TrackInfo, fragment, init_segment
from lipcast.media.h264 import CODEC, ToYuv, check_encoder, set_up
from lipcast.media.resample import Samples
from lipcast.media.sound_track import aac_bit_rate

_AAC_FRAME = 1024
_X264 = {"preset": "veryfast", "tune": "zerolatency", "crf": "20", "profile": "main"}
_START_CODE = re.compile(b"\x00\x00\x01")
_PICTURE_TICKS = 512
_GLOBAL_HEADER = 1 << 22
_KEY_PICTURE = 1
"""FFmpeg's number of an I picture."""


class LiveEncoder:
    """The encoders and the numbering of one stream."""

    def __init__(
        self,
        *,
        width: int,
        height: int,
        sample_rate: int,
        num_channels: int = 1,
        marked: bool = True,
    ) -> None:
        """`marked`: say in the stream that it is synthetic. Raises OutputError without an encoder."""
        import av

        check_encoder()
        self._to_yuv = ToYuv(VIDEO_FPS)
        self._video: Any = av.CodecContext.create(CODEC, "w")
        set_up(self._video, size=(height, width), fps=VIDEO_FPS, num_threads=1)
        self._video.options = dict(_X264)
        self._audio: Any = av.CodecContext.create("aac", "w")
        self._audio.sample_rate, self._audio.format = sample_rate, "fltp"
        self._audio.layout = self._layout = "mono" if num_channels == 1 else "stereo"
        self._audio.bit_rate = num_channels * aac_bit_rate(sample_rate)
        self._audio.time_base = Fraction(1, sample_rate)
        for codec in (self._video, self._audio):
            codec.flags |= _GLOBAL_HEADER
            codec.open()
        sps, pps = (_units(self._video.extradata, kind)[0] for kind in (7, 8))
        config = bytes(self._audio.extradata)
        self.info = TrackInfo(
            width, height, VIDEO_FPS * _PICTURE_TICKS, sps, pps, sample_rate, num_channels, config
        )
        self.init_segment = init_segment(self.info, marked=marked)
        self.num_pictures = 0
        self._num_samples = self._num_fragments = self._num_sound = 0

    def encode(self, pictures: NDArray[np.uint8], sound: Samples, *, key: bool = False) -> bytes:
        """Return a fragment of pictures [n, H, W, 3] and samples [m, channels].

        `key`: the first picture can be shown without those before it.
        """
        begun, packets = self.num_pictures, []
        for picture in pictures:
            packets += self._encode_picture(picture, key=key and self.num_pictures == begun)
        self._num_fragments += 1
        shown = [b"".join(map(_sized, _units(bytes(packet)))) for packet in packets]
        keys = [bool(packet.is_keyframe) for packet in packets]
        video = Run(VIDEO_TRACK, begun * _PICTURE_TICKS, _PICTURE_TICKS, shown, keys)
        return fragment(self._num_fragments, (video, self._encode_sound(sound)))

    def _encode_picture(self, picture: NDArray[np.uint8], *, key: bool) -> list[Any]:
        frame = self._to_yuv(picture, self.num_pictures)
        frame.pict_type = _KEY_PICTURE if key else 0
        self.num_pictures += 1
        packets: list[Any] = self._video.encode(frame)
        return packets

    def _encode_sound(self, sound: Samples) -> Run:
        import av

        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound.T.clip(-1, 1)), format="fltp", layout=self._layout
        )
        frame.sample_rate, frame.pts = self.info.sample_rate, self._num_samples
        frame.time_base = Fraction(1, frame.sample_rate)
        self._num_samples += len(sound)
        coded = [bytes(packet) for packet in self._audio.encode(frame)]
        # The first packet is the encoder's delay; without it sample 0 is at time 0.
        first = self._num_sound
        self._num_sound += len(coded)
        kept, time = (coded[1:], 0) if first == 0 else (coded, (first - 1) * _AAC_FRAME)
        return Run(AUDIO_TRACK, time, _AAC_FRAME, kept)


def _units(stream: bytes, kind: int | None = None) -> list[bytes]:
    """Return the NAL units of a byte stream (Annex B), or those of one type."""
    starts = [match.end() for match in _START_CODE.finditer(stream)]
    ends = [start - 3 for start in starts[1:]] + [len(stream)]
    units = [stream[a:b].rstrip(b"\x00") for a, b in zip(starts, ends, strict=True)]
    return [unit for unit in units if kind is None or unit[0] & 31 == kind]


def _sized(unit: bytes) -> bytes:
    return len(unit).to_bytes(4, "big") + unit
