"""Video files: written as frames come, readable at any moment; and read back.

Input: uint8 RGB frames and float32 samples in any amounts. Output: H.264 + AAC in MP4, MOV or MKV.
The file grows by fragments of about half a second, so that a killed process leaves a video that
plays; sound is cut or padded to exactly the length of the picture. Memory does not grow.
Every reason why the file cannot be written raises OutputError; what was finished stays playable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.closing import Closing
from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.env import logger
from lipcast.errors import InputError, OutputError
from lipcast.media.decode import open_container, read_sound
from lipcast.media.h264 import (
    BT709,
    CODEC,
    FULL_RANGE,
    LIMITED_RANGE,
    SWS_FLAGS,
    ToYuv,
    check_encoder,
    going_on,
    last_picture,
    options,
    set_up,
)
from lipcast.media.marking import SYNTHETIC_MEDIA
from lipcast.media.mp4 import keep_complete, make_plain
from lipcast.media.resample import Fifo, Samples
from lipcast.media.sound_track import SoundTrack
from lipcast.media.target import check_target, container_of, explained
from lipcast.media.uninterrupted import uninterrupted

Frames = NDArray[np.uint8]

_LOG = logger("media.video")
_FRAGMENT_S = 0.48
_BT601 = 5
_KNOWN_MATRICES = {BT709, 4, _BT601, 6, 7, 9}
"""Colour matrices that have one number as a tag and for the converter."""
_HD_HEIGHT = 720


class VideoWriter(Closing):
    """A video file that grows. A context manager; `close` completes it, also after an error."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        sample_rate: int,
        num_channels: int,
        fps: int = VIDEO_FPS,
        num_threads: int = 1,
        after: Path | None = None,
        marked: bool = True,
    ) -> None:
        """Check that the file can be written; it is created (or replaced) by the first frame.

        `width` and `height` in pixels, even; `sample_rate` in Hz, one that AAC has;
        `num_channels` 1 or 2; `num_threads` for the encoder (1: none but the caller's);
        `after`: the video of the same size that this one goes on from, so that no seam is seen;
        `marked`: note in the metadata that the video is synthetic.
        Raises OutputError: unknown suffix, no such folder, no right to write, no encoder.
        """
        assert width % 2 == height % 2 == 0 and num_channels in (1, 2)
        self.path = Path(path)
        self.num_frames = 0
        check_target(self.path)
        check_encoder()
        self._size = height, width
        self._sample_rate, self._num_channels = sample_rate, num_channels
        self._fps, self._num_threads, self._after = fps, num_threads, after
        self._marked = marked
        self._waiting = Fifo(num_channels)
        self._num_samples = 0
        self._mux: _Muxer | None = None
        self._closed = False
        self._failure = ""

    def write(self, frames: Frames, audio: Samples) -> None:
        """Append frames [n, H, W, 3] and samples [m, channels]; either may be empty.

        Give sound with its pictures: what runs ahead is kept in memory. Raises OutputError, and
        again in every later call: what was complete by then stays in the file.
        """
        if self._failure:
            raise OutputError(self._failure)
        assert not self._closed
        assert frames.dtype == np.uint8 and frames.shape[1:] == (*self._size, 3)
        assert audio.ndim == 2 and audio.shape[1] == self._num_channels
        self._waiting.push(audio.T.copy())
        with self._failures_explained():
            # Sound first, so that a fragment that a picture completes has its sound.
            self._encode_sound(self._missing_samples(self.num_frames + len(frames)))
            for frame in frames:
                self._encode_frame(frame)

    def close(self) -> None:
        """Complete the file; a second time, or after an error, do nothing. Raises OutputError."""
        if self._closed:
            return
        self._closed = True
        if self._mux is None:
            return
        with self._failures_explained():
            missing = self._missing_samples(self.num_frames)
            silence = max(0, missing - self._waiting.length)
            self._waiting.push(np.zeros((self._num_channels, silence), np.float32))
            self._encode_sound(missing)
            self._mux.finish()
        if container_of(self.path) != "matroska":
            make_plain(self.path, self._mux.num_pictures)

    def _encode_frame(self, frame: Frames) -> None:
        # Counted first: if it fails, a number is left out and none is used twice.
        self.num_frames += 1
        with uninterrupted():
            self._muxer().encode_frame(frame, self.num_frames - 1)

    def _missing_samples(self, num_frames: int) -> int:
        """Return how much sound so many pictures still lack."""
        return num_frames * self._sample_rate // self._fps - self._num_samples

    def _encode_sound(self, most_samples: int) -> None:
        """Encode of what waits at most so many samples."""
        num_samples = min(self._waiting.length, most_samples)
        if num_samples > 0:  # an interrupted block leaves the sound ahead of the pictures
            with uninterrupted():
                self._num_samples += num_samples
                samples = self._waiting.pop(num_samples)
                self._muxer().sound.encode(samples, self._num_samples - num_samples)

    def _muxer(self) -> _Muxer:
        if self._mux is None:
            self._mux = _Muxer(
                self.path,
                size=self._size,
                sample_rate=self._sample_rate,
                num_channels=self._num_channels,
                fps=self._fps,
                num_threads=self._num_threads,
                after=self._after,
                marked=self._marked,
            )
        return self._mux

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        import av

        try:
            yield
        except (OSError, av.FFmpegError) as error:
            self._closed = True
            if self._mux is not None:
                self._mux.abandon()
                keep_complete(self.path)
            failure = explained(self.path, error)
            self._failure = str(failure)
            raise failure from error


class _Muxer:
    """Encoders and container of one file."""

    def __init__(
        self,
        path: Path,
        *,
        size: tuple[int, int],
        sample_rate: int,
        num_channels: int,
        fps: int,
        num_threads: int,
        after: Path | None,
        marked: bool,
    ) -> None:
        import av

        self._fps, self._before = fps, after and last_picture(after, size)
        # By name: the library then writes by itself, without a way back into the interpreter
        # where Ctrl-C would be lost. "file:" keeps a colon in the name from being a protocol.
        self._container: Any = av.open(
            f"file:{path}", "w", format=container_of(path), container_options=_muxing(path)
        )
        if marked:
            self._container.metadata["comment"] = SYNTHETIC_MEDIA
        self.num_pictures = 0
        """That left the encoder so far."""
        self._to_yuv = ToYuv(fps)
        self._video = self._container.add_stream(CODEC, rate=fps)
        self._video.options = options(at_seam=after is not None)
        set_up(self._video.codec_context, size=size, fps=fps, num_threads=num_threads)
        self.sound = SoundTrack(self._container, sample_rate=sample_rate, num_channels=num_channels)

    def encode_frame(self, frame: Frames, index: int) -> None:
        """Encode [H, W, 3] as picture number `index`."""
        picture = self._to_yuv(frame, index)
        if self._before is not None:
            picture = going_on(self._before, picture, fps=self._fps)
            self._before = None
        self._mux_pictures(self._video.encode(picture))

    def finish(self) -> None:
        """Flush the encoders and write the end of the file."""
        self._mux_pictures(self._video.encode(None))
        self.sound.finish()
        self._container.close()

    def _mux_pictures(self, packets: list[Any]) -> None:
        for packet in packets:
            self._container.mux(packet)
            self.num_pictures += 1

    def abandon(self) -> None:
        """Let go of the file after an error; the error of closing adds nothing to it."""
        import av

        with suppress(OSError, av.FFmpegError):
            self._container.close()


def _muxing(path: Path) -> dict[str, str]:
    """Return the muxer's options. delay_moov keeps picture and sound aligned to 0.0 ms."""
    if container_of(path) == "matroska":
        return {"cluster_time_limit": str(int(_FRAGMENT_S * 1000)), "flush_packets": "1"}
    return {
        "movflags": "frag_keyframe+delay_moov+default_base_moof",
        "frag_duration": str(int(_FRAGMENT_S * 1_000_000)),
        "flush_packets": "1",
    }


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """A whole video in memory."""

    frames: Frames
    """[n, H, W, 3], RGB."""
    audio: Samples
    """[m, channels]; m = 0 where the file has no sound. Starts with the first frame."""
    sample_rate: int
    fps: float


def read_video(path: str | os.PathLike[str]) -> DecodedVideo:
    """Decode a video file of constant rate. Raises InputError where there is no picture in it."""
    frames = list(iter_frames(path))
    if not frames:
        raise InputError(f"expected a video, got {path} without any picture")
    start_s, fps, has_sound = timing(path)
    audio, sample_rate = np.zeros((0, 1), np.float32), SAMPLE_RATE
    if has_sound:
        audio, sample_rate, sound_start_s = read_sound(path)
        audio = _shifted(audio, round((sound_start_s - start_s) * sample_rate))
    return DecodedVideo(frames=np.stack(frames), audio=audio, sample_rate=sample_rate, fps=fps)


def timing(path: str | os.PathLike[str]) -> tuple[float, float, bool]:
    """Return when the first picture is shown (s), pictures per second, and whether there is sound.

    Logs a warning for a file whose pictures are not evenly spaced. Raises InputError where none decodes.
    """
    import av

    with _open_video(path) as container:
        stream = container.streams.video[0]
        try:
            first = next(container.decode(stream), None)
        except av.FFmpegError:
            first = None
        if first is None:
            raise InputError(f"expected a video, got {os.fspath(path)} without any picture")
        start_s = float(first.pts * first.time_base) if first.pts is not None else 0.0
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate or VIDEO_FPS
        has_sound = bool(container.streams.audio)
    _warn_of_uneven(path, float(rate))
    return start_s, float(rate), has_sound


def _warn_of_uneven(path: str | os.PathLike[str], fps: float) -> None:
    gaps = np.diff(_picture_times(path))
    if len(gaps) and gaps.max() > 1.5 * np.median(gaps) + 0.002:
        _LOG.warning(
            "%s: its pictures are unevenly spaced (gaps of %.0f to %.0f ms); they count as %.4g a second, "
            "and what is said of time is less exact",
            path,
            1000 * gaps.min(),
            1000 * gaps.max(),
            fps,
        )


def frame_times(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Return when each picture is shown, in seconds from the first one. Raises InputError where none is."""
    times = _picture_times(path)
    if not len(times):
        raise InputError(f"expected a video, got {os.fspath(path)} without any picture")
    times -= times[0]
    return times


def _picture_times(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    with _open_video(path) as container:
        stream = container.streams.video[0]
        packets = [(p.pts, p.size) for p in container.demux(stream) if not p.is_discard]
        rate, time_base = float(stream.guessed_rate or VIDEO_FPS), float(stream.time_base or 0)
    pts = [pts for pts, _ in packets if pts is not None]
    if not pts:  # a stream without times, such as raw H.264
        return np.arange(sum(size > 0 for _, size in packets)) / rate
    times = np.array(pts, np.float64) * time_base
    times.sort()
    return times


def _shifted(audio: Samples, num_samples: int) -> Samples:
    """Shift a sound: later by silence in front, or earlier by a cut."""
    if num_samples <= 0:
        return audio[-num_samples:]
    return np.concatenate([np.zeros((num_samples, audio.shape[1]), np.float32), audio])


def iter_frames(path: str | os.PathLike[str]) -> Iterator[Frames]:
    """Yield the frames [H, W, 3] of a video, RGB, upright, one at a time. A damaged end is the end."""
    import av
    from av.video.reformatter import VideoReformatter

    to_rgb = VideoReformatter()
    with _open_video(path) as container:
        try:
            for picture in container.decode(video=0):
                rgb: Any = to_rgb.reformat(
                    picture,
                    format="rgb24",
                    src_colorspace=_matrix_of(picture),
                    src_color_range=picture.color_range or LIMITED_RANGE,
                    dst_color_range=FULL_RANGE,
                    interpolation=SWS_FLAGS,
                )
                yield _upright(rgb.to_ndarray(), picture)
        except av.FFmpegError as error:
            _LOG.warning("%s: ends with an error (%s); the frames before it are used", path, error)


def _upright(frame: Frames, picture: Any) -> Frames:
    """Turn and mirror a frame as its display matrix says: a phone's sensor does not turn with it."""
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return frame
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    if abs(b) > abs(a):
        frame, a, d = frame.swapaxes(0, 1), c, b
    return np.ascontiguousarray(frame[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _matrix_of(picture: Any) -> int:
    """Return the picture's colour matrix; where it is not tagged, what players assume for its size."""
    if picture.colorspace in _KNOWN_MATRICES:
        return int(picture.colorspace)
    return BT709 if picture.height >= _HD_HEIGHT else _BT601


def _open_video(path: str | os.PathLike[str]) -> Any:
    """Return a demuxer for a file with pictures. Raises InputError."""
    container = open_container(path, expected="a video file")
    if not container.streams.video:
        container.close()
        raise InputError(f"expected a video file, got {os.fspath(path)} without pictures")
    return container
