"""H.264 encoding, here and nowhere else: the encoder, its settings, its colours.

Input: RGB pictures. Output: settings on an encoder, pictures as it takes them. And the first picture of a
video that goes on from another one: a key frame has other noise than the picture before it, which is seen as
a jump at a seam, so that it is made from what an encoder that had gone on would have shown.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.errors import InputError, OutputError
from lipcast.media.decode import open_container

CODEC = "libx264"
BT709 = 1
FULL_RANGE, LIMITED_RANGE = 2, 1
# Bicubic, full chroma on both sides, exact rounding: +2 dB over the default for 0.1 ms (256x256).
SWS_FLAGS = 0x4 | 0x2000 | 0x4000 | 0x40000
_KEYFRAME_S = 2
# Frames in order (no B-frames) cost no bytes here, a quarter less time, and leave no gap at the
# end of a killed file. Looking 5 frames ahead instead of 0 makes the file 4 times smaller.
_X264 = {"preset": "veryfast", "crf": "18", "bf": "0", "rc-lookahead": "5"}
# The key frame at a seam: 15 kB more at 256x256. At crf 20 the change into it is that of other borders
# between blocks (0.94 of the change before encoding, both; 1.32 without all this: scripts/soak/seams.py).
_AT_SEAM = _X264 | {"x264-params": "zones=0,0,q=6"}
_BRIDGE = _X264 | {"crf": "20", "x264-params": "zones=0,0,q=1:scenecut=0"}


def check_encoder() -> None:
    """Raise OutputError where FFmpeg was built without x264 (distributions do so)."""
    import av

    try:
        av.Codec(CODEC, "w")
    except ValueError as error:
        raise OutputError(
            f"expected an H.264 encoder ({CODEC}) in PyAV {av.__version__}, got none; "
            "install the wheel: pip install --force-reinstall --only-binary :all: av"
        ) from error


def set_up(encoder: Any, *, size: tuple[int, int], fps: int, num_threads: int) -> None:
    """Apply the settings of every video to an encoder's context; `size` is (height, width)."""
    encoder.height, encoder.width = size
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, fps)
    encoder.gop_size = _KEYFRAME_S * fps
    encoder.thread_count = num_threads
    # Untagged video is shown in other colours by browsers, so all four tags are set.
    encoder.colorspace = encoder.color_primaries = encoder.color_trc = BT709
    encoder.color_range = LIMITED_RANGE


def options(*, at_seam: bool) -> dict[str, str]:
    """Return x264's own settings; `at_seam` for a video that goes on from another one."""
    return dict(_AT_SEAM if at_seam else _X264)


class ToYuv:
    """RGB pictures as the encoder takes them."""

    def __init__(self, fps: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._fps = fps

    def __call__(self, frame: NDArray[np.uint8], index: int) -> Any:
        """Convert [H, W, 3] to picture number `index`."""
        import av

        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = self._reformatter.reformat(
            rgb,
            format="yuv420p",
            dst_colorspace=BT709,
            src_color_range=FULL_RANGE,
            dst_color_range=LIMITED_RANGE,
            interpolation=SWS_FLAGS,
        )
        picture.pts, picture.time_base = index, Fraction(1, self._fps)
        return picture


def last_picture(path: Path, size: tuple[int, int]) -> Any:
    """Return the last picture of a file of `size` (height, width), as it is decoded. Raises InputError."""
    last, (height, width) = None, size
    with open_container(path, expected="a video file to go on from") as container:
        for stream in container.streams.video[:1]:
            if stream.duration is not None:
                container.seek((stream.start_time or 0) + stream.duration, stream=stream)
            for picture in container.decode(stream):
                last = picture
    got = "no picture" if last is None else f"{last.width}x{last.height}"
    if got != f"{width}x{height}":
        raise InputError(
            f"{path}: expected a video of {width}x{height} to go on from, got {got}; "
            "name one of this size, or none"
        )
    return last


def going_on(before: Any, picture: Any, *, fps: int) -> Any:
    """Return `picture` as it would be shown by an encoder that had just shown `before`."""
    import av

    encoder: Any = av.CodecContext.create(CODEC, "w")
    set_up(encoder, size=(picture.height, picture.width), fps=fps, num_threads=1)
    encoder.options = dict(_BRIDGE)
    decoder: Any = av.CodecContext.create("h264", "r")
    before.pict_type = picture.pict_type = 0
    before.pts, before.time_base = picture.pts - 1, picture.time_base
    packets = [*encoder.encode(before), *encoder.encode(picture), *encoder.encode(None)]
    shown = [frame for packet in packets for frame in decoder.decode(packet)]
    shown += decoder.decode(None)
    shown[-1].pts, shown[-1].time_base, shown[-1].pict_type = picture.pts, picture.time_base, 0
    return shown[-1]
