"""Fuzzers of what a user writes: tables, lists, matrices, sizes, lengths of time, adapters, fallbacks."""

from __future__ import annotations

import json
from collections.abc import Callable

from fuzz_inputs import broken_copies, file_of
from hypothesis import given
from hypothesis import strategies as st

from lipcast.cli.batch import options_of
from lipcast.config.fallbacks import parse_fallbacks
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.tables import parse_table
from lipcast.config.text_file import decode_text
from lipcast.config.units import parse_bytes
from lipcast.lab.matrix import read_matrix
from lipcast.lab.results import read_results
from lipcast.media.concat import read_list

CSV = 'image,audio,prompt,output,num_clip,segment\na.png,b.wav,"a ""calm"" man,\nsmiling",o.mp4,2,"60,5s"\n'
JSON = '[{"image": "a.png", "audio": "b.wav", "lora": ["a:0.5"], "fp8": true, "num_clip": 2.0}]\n{}'
LIST = "ffconcat version 1.0\n# mine\nfile 'a b.mp4'\nfile it\\'s.mp4\n"
MATRIX = '[fixed]\nmodel = "tiny"\n[axes]\ninfer_frames = [16, 24]\n'
RESULTS = '{"kind": "bench", "cell": {"size": "64*64"}, "repeat": 0, "status": "ok"}\n{"kind": "quality"}\n'
_texts = st.text(max_size=40)


def _text_of(good: str) -> st.SearchStrategy[bytes]:
    """Broken copies of a text in several encodings, and any bytes."""
    encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252")
    copies = [broken_copies(good.encode(encoding)) for encoding in encodings]
    return st.one_of(*copies, st.binary(max_size=60))


@given(_text_of(CSV))
def _csv(data: bytes) -> None:
    for row in parse_table(decode_text(data, "t.csv"), "t.csv"):
        options_of(row)


@given(_text_of(JSON))
def _json(data: bytes) -> None:
    for row in parse_table(decode_text(data, "t.json"), "t.json"):
        options_of(row)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)
_columns = st.sampled_from(
    ("image", "Num Clip", "--infer-frames", "lora", "fp8", "no_fold_last_step", "segment", "sample_shift",
     "base_seed", "size", "offload_model", "schedule", "save_file")
)  # fmt: skip


@given(st.lists(st.dictionaries(_columns | _texts, _values, max_size=5), min_size=1, max_size=3))
def _values_of_json(rows: list[dict[str, object]]) -> None:
    for row in parse_table(json.dumps(rows), "t.json"):
        options_of(row)


@given(_text_of(LIST))
def _list_of_videos(data: bytes) -> None:
    with file_of(data, "list.txt") as path:
        read_list(path)


@given(_text_of(MATRIX) | _text_of('{"axes": {"infer_frames": [16, 24]}, "repeats": 2}'))
def _matrix(data: bytes) -> None:
    with file_of(data, "matrix") as path:
        read_matrix(path).cells()


@given(_text_of(RESULTS))
def _results(data: bytes) -> None:
    with file_of(data, "results.jsonl") as path:
        read_results([path])


@given(_texts | st.from_regex(r"[0-9.,]{1,6} ?[kKmMgGtT]?i?[bB]?", fullmatch=True))
def _memory_sizes(text: str) -> None:
    parse_bytes(text)


_FALLBACKS = (
    "online_decode",
    "kv_streamed",
    "offload",
    "infer_frames=32",
    "size=384*256",
    "sample_steps=3",
    "size=",
)


@given(st.lists(st.sampled_from(_FALLBACKS) | st.text(max_size=8), max_size=4).map(", ".join))
def _fallbacks(text: str) -> None:
    parse_fallbacks(text)


@given(_texts | st.from_regex(r"-?\d{1,5} ?[*xX×] ?\d{1,5}", fullmatch=True))
def _video_sizes(text: str) -> None:
    GenerateOptions(size=text)


def targets() -> dict[str, Callable[[], None]]:
    return {
        "tables: CSV": _csv,
        "tables: JSON": _json,
        "tables: values": _values_of_json,
        "lists for concat": _list_of_videos,
        "matrices of a sweep": _matrix,
        "files of results": _results,
        "sizes of memory": _memory_sizes,
        "fallbacks": _fallbacks,
        "sizes of videos": _video_sizes,
    }
