"""Fragmented MP4 (ISO/IEC 14496-12) for live streams: an initialisation segment, then fragments.

Input: encoded packets of one H.264 and one AAC track. Output: bytes that Media Source Extensions take as they
come, and that are a playable file when they are joined. FFmpeg's muxer keeps a fragment back until the
packet after it has come, which costs a live stream a block; here a fragment is complete when it is asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from lipcast.media.marking import SYNTHETIC_MEDIA

VIDEO_TRACK, AUDIO_TRACK = 1, 2
_IS_KEY, _IS_NOT_KEY = 0x0200_0000, 0x0101_0000
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x4000_0000)


@dataclass(frozen=True, slots=True)
class TrackInfo:
    """The tracks of a stream."""

    width: int
    height: int
    video_timescale: int
    sps: bytes
    pps: bytes
    sample_rate: int
    num_channels: int
    audio_config: bytes
    """AudioSpecificConfig of AAC."""

    @property
    def mime(self) -> str:
        """The type to open a `SourceBuffer` with."""
        return f'video/mp4; codecs="avc1.{self.sps[1:4].hex()}, mp4a.40.2"'


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive samples of one track in a fragment."""

    track: int
    decode_time: int
    """Time of the first sample, in the timescale of the track."""
    duration: int
    """Duration of every sample."""
    samples: Sequence[bytes]
    key_frames: Sequence[bool] = ()
    """By sample, for pictures; empty where all are."""


def init_segment(info: TrackInfo, *, marked: bool = True) -> bytes:
    """Return `ftyp` and `moov`; `marked`: with a note that the media are synthetic."""
    tracks = _video_track(info) + _audio_track(info)
    extends = b"".join(_trex(track) for track in (VIDEO_TRACK, AUDIO_TRACK))
    note = _comment(SYNTHETIC_MEDIA) if marked else b""
    header = _full("mvhd", struct.pack(">4I", 0, 0, 1000, 0), struct.pack(">IH10x", 0x10000, 0x100),
                   _MATRIX, bytes(24), struct.pack(">I", 3))  # fmt: skip
    brands = b"iso5" + struct.pack(">I", 512) + b"iso5iso6mp41"
    return box("ftyp", brands) + box("moov", header, tracks, box("mvex", extends), note)


def fragment(sequence: int, runs: Sequence[Run]) -> bytes:
    """Return `moof` and `mdat` of some runs, of at most one per track."""
    runs = [run for run in runs if run.samples]
    moof = _moof(sequence, runs, [0] * len(runs))
    offset, offsets = len(moof) + 8, []
    for run in runs:
        offsets.append(offset)
        offset += sum(map(len, run.samples))
    data = b"".join(sample for run in runs for sample in run.samples)
    return _moof(sequence, runs, offsets) + box("mdat", data)


def box(name: str, *parts: bytes) -> bytes:
    """Return one box."""
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, name.encode("latin-1")) + content


def _full(name: str, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def _moof(sequence: int, runs: Sequence[Run], offsets: Sequence[int]) -> bytes:
    trafs = [_traf(run, offset) for run, offset in zip(runs, offsets, strict=True)]
    return box("moof", _full("mfhd", struct.pack(">I", sequence)), *trafs)


def _traf(run: Run, offset: int) -> bytes:
    keys = run.key_frames or [True] * len(run.samples)
    # Flags: the default base is the moof; default duration. Then data offset, sizes and flags of samples.
    header = _full("tfhd", struct.pack(">2I", run.track, run.duration), flags=0x20008)
    time = _full("tfdt", struct.pack(">Q", run.decode_time), version=1)
    rows = b"".join(
        struct.pack(">2I", len(sample), _IS_KEY if key else _IS_NOT_KEY)
        for sample, key in zip(run.samples, keys, strict=True)
    )
    trun = _full("trun", struct.pack(">2I", len(run.samples), offset), rows, flags=0x601)
    return box("traf", header, time, trun)


def _trex(track: int) -> bytes:
    return _full("trex", struct.pack(">5I", track, 1, 0, 0, 0))


def _video_track(info: TrackInfo) -> bytes:
    config = bytes((1, *info.sps[1:4], 0xFF, 0xE1)) + _sized(info.sps) + b"\x01" + _sized(info.pps)
    entry = box(
        "avc1",
        struct.pack(">6xH16x2H2I4xH32xHh", 1, info.width, info.height, 0x480000, 0x480000, 1, 24, -1),
        box("avcC", config),
    )  # fmt: skip
    size = struct.pack(">2I", info.width << 16, info.height << 16)
    return _track(VIDEO_TRACK, "vide", info.video_timescale, entry, size)


def _audio_track(info: TrackInfo) -> bytes:
    decoder = b"\x40\x15" + bytes(11) + _descriptor(5, info.audio_config)
    stream = struct.pack(">HB", AUDIO_TRACK, 0) + _descriptor(4, decoder) + _descriptor(6, b"\x02")
    entry = box(
        "mp4a",
        struct.pack(">6xH8x2H4xI", 1, info.num_channels, 16, info.sample_rate << 16),
        _full("esds", _descriptor(3, stream)),
    )
    return _track(AUDIO_TRACK, "soun", info.sample_rate, entry, bytes(8))


def _track(track: int, kind: str, timescale: int, entry: bytes, size: bytes) -> bytes:
    is_sound = kind == "soun"
    volume = struct.pack(">8x2hH2x", 0, 0, 0x100 if is_sound else 0)
    header = _full("tkhd", struct.pack(">5I", 0, 0, track, 0, 0), volume, _MATRIX, size, flags=7)
    media = _full("mdhd", struct.pack(">4I2H", 0, 0, timescale, 0, 0x55C4, 0))
    handler = _full("hdlr", struct.pack(">I4s12x", 0, kind.encode()), b"Lipcast\0")
    about = _full("smhd", bytes(4)) if is_sound else _full("vmhd", bytes(8), flags=1)
    place = box("dinf", _full("dref", struct.pack(">I", 1), _full("url ", flags=1)))
    table = box(
        "stbl",
        _full("stsd", struct.pack(">I", 1), entry),
        *(_full(name, bytes(4)) for name in ("stts", "stsc")),
        _full("stsz", bytes(8)),
        _full("stco", bytes(4)),
    )
    inner = box("minf", about, place, table)
    return box("trak", header, box("mdia", media, handler, inner))


def _comment(text: str) -> bytes:
    """Return user data with a comment, as players and FFmpeg read them."""
    data = box("data", struct.pack(">2I", 1, 0), text.encode())
    handler = _full("hdlr", struct.pack(">I4s4s9x", 0, b"mdir", b"appl"))
    return box("udta", _full("meta", handler, box("ilst", box("\xa9cmt", data))))


def _descriptor(tag: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes((tag, len(content))) + content


def _sized(unit: bytes) -> bytes:
    return struct.pack(">H", len(unit)) + unit
