"""Tables of prompts as people write them, and the blocks at which prompts begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipcast.config.direction import Direction, read_prompts
from lipcast.errors import InputError

FOUND = ((0.0, "a calm man"), (2.5, "laughing, and loud"), (65.0, "ein müder Mann"))


@pytest.mark.parametrize(
    "data",
    [
        'second,prompt\n0,a calm man\n2.5,"laughing, and loud"\n65,ein müder Mann\n'.encode(),
        '0,a calm man\r\n2.5,"laughing, and loud"\r\n1:05,ein müder Mann\r\n'.encode("utf-8-sig"),
        "0;a calm man\n2,5;laughing, and loud\n0:01:05;ein müder Mann".encode("utf-16"),
        "Time\tText\n0 s\ta calm man\n2.5s\tlaughing, and loud\n1:05\tein müder Mann\n".encode(),
        "# a note\n\n0,0|a calm man\n2,50|laughing, and loud\n65|ein müder Mann\n".encode(),
        b'[{"second": 0, "prompt": "a calm man"}, {"second": 2.5, "prompt": "laughing, and loud"},'
        b'{"second": "1:05", "prompt": "ein m\\u00fcder Mann"}]',
    ],
)
def test_tables_as_spreadsheets_and_people_write_them(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(data)
    assert read_prompts(path) == FOUND
    assert Direction(prompts=str(path)) == Direction(prompts=FOUND)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are no rows in it"),
        ("second,prompt\n", "there are no rows in it"),
        ("0,calm\nsoon,laughing\n", r"row 2: expected a time in seconds .* got 'soon'"),
        ("second,prompt\n-1,calm\n", r"row 2: expected a time in seconds .* got '-1'"),
        ("second,prompt\nnan,calm\n", "row 2: expected a time in seconds"),
        ("second,prompt\n,calm\n", "row 2: expected a time in seconds"),
        ("0,calm\n3,\n", "row 2: has no prompt"),
        ("0,calm\n3,a man, smiling\n", "row 2: column 3 has no name"),
        ("second,prompt,style\n0,calm,x\n", "row 2: expected the columns second and prompt, got 'style'"),
        ("time,second,prompt\n0,0,calm\n", "row 2: expected the columns second and prompt"),
        ("0,calm\n3,a\n3,b\n", "row 3: 3 s is not later than the 3 s before it"),
        ("5,calm\n3,a\n", "row 2: 3 s is not later than the 5 s before it"),
        ("[1, 2]", "expected an object with named values"),
        ('{"second": 1, "prompt": ["a"]}', "has no prompt"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=message):
        Direction(prompts=path)


def test_a_prompt_begins_at_the_nearest_border_of_a_block() -> None:
    direction = Direction(prompts=[(0.2, "a"), (0.25, "b"), (1.21, "c"), (3600, "d")])
    assert direction.prompts_by_block("", 12) == {0: "a", 1: "b", 3: "c", 7500: "d"}
    later = Direction(prompts=[(0.25, "b")])
    assert later.prompts_by_block("first", 12) == {0: "first", 1: "b"}
    assert Direction().prompts_by_block(Path("x.safetensors"), 12) == {0: Path("x.safetensors")}
