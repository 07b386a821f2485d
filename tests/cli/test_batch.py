"""Tables of jobs, as people's programs save them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lipcast.cli.command import Option, Section
from lipcast.cli.generate import generate
from lipcast.cli.main import main
from lipcast.config.tables import parse_table, spelled
from lipcast.lab.matrix import read_matrix
from lipcast.media.concat import read_list
from sounds import write_wav

Submit = Callable[..., Any]
PLAIN = 'image,audio,prompt,output\na.png,b.wav,"a calm man, smiling",o.mp4\n'
CHINESE = "image,audio,prompt,output\na.png,b.wav,一个冷静的男人在微笑,o.mp4\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    write_wav(tmp_path / "b.wav", 0.48)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


@pytest.fixture
def submit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Submit:
    """Submit a table, with another working folder than the table's; returns the jobs."""
    monkeypatch.chdir(folder / "elsewhere")

    def run(data: str | bytes, name: str = "jobs.csv", words: tuple[str, ...] = ()) -> Any:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        place = ("--workspace", str(folder / "work"))
        submitted = ("job", "submit", "--batch", str(folder / name), *words, *place, "--json")
        code = main(submitted)
        document = json.loads(capsys.readouterr().out)
        if code:
            return code, document["error"]["message"]
        jobs = []
        for job in document["jobs"]:
            assert main(["job", "show", job, *place]) == 0
            jobs.append(json.loads(capsys.readouterr().out)["request"])
        return jobs

    return run


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (PLAIN, "jobs.csv"),
        (PLAIN, "JOBS.CSV"),
        (PLAIN, "jobs.txt"),
        (b"\xef\xbb\xbf" + PLAIN.encode(), "jobs.csv"),
        (PLAIN.encode("utf-16"), "jobs.csv"),
        (b"\xfe\xff" + PLAIN.encode("utf-16-be"), "jobs.csv"),
        (PLAIN.encode("utf-32"), "jobs.csv"),
        ('image;audio;prompt;output\na.png;b.wav;"a calm man, smiling";o.mp4\n', "jobs.csv"),
        ("image\taudio\tprompt\toutput\na.png\tb.wav\ta calm man, smiling\to.mp4\n", "jobs.tsv"),
        (PLAIN.replace("\n", "\r\n"), "jobs.csv"),
        (PLAIN.replace("\n", "\r"), "jobs.csv"),
        ('sep=;\r\nimage;audio;prompt;output\r\na.png;b.wav;"a calm man, smiling";o.mp4', "jobs.csv"),
        ("\n# mine\n" + PLAIN + "\n,,,\n", "jobs.csv"),
        ('image,audio,prompt,output,,\na.png,b.wav,"a calm man, smiling",o.mp4,,\n', "jobs.csv"),
        (' Image , AUDIO,Prompt,save_file\n a.png ,b.wav, "a calm man, smiling" ,o.mp4', "jobs.csv"),
        (
            "--image,--audio,--prompt,-o,Num Clip,infer-frames,singleGpu\n"
            + 'a.png,b.wav,"a calm man, smiling",o.mp4,3.0,"48,0",TRUE',
            "jobs.csv",
        ),
        ('[{"image":"a.png","audio":"b.wav","prompt":"a calm man, smiling","output":"o.mp4"}]', "jobs.json"),
        (
            '\ufeff{"image":"a.png","audio":"b.wav",\n '
            '"prompt":"a calm man, smiling","save_file":"o.mp4"}\n\n',
            "jobs.jsonl",
        ),
    ],
)  # fmt: skip
def test_one_table_however_it_was_saved(submit: Submit, folder: Path, data: Any, name: str) -> None:
    (job,) = submit(data, name)
    assert job["prompt"] == "a calm man, smiling"
    assert job["output"] == str(folder / "o.mp4") and job["image"] == str(folder / "a.png")


def test_a_line_break_in_quotes_stays(submit: Submit) -> None:
    text = 'image,audio,prompt,output\na.png,b.wav,"a calm man\nwho {}smiles",o.mp4\n'
    for mark in ("", "\u2028", "\v"):
        assert submit(text.format(mark))[0]["prompt"] == f"a calm man\nwho {mark}smiles"
    lines = json.dumps(
        {"image": "a.png", "audio": "b.wav", "prompt": "a\u2028b", "output": "p.mp4"},
        ensure_ascii=False,
    )
    assert submit(lines, "jobs.jsonl")[0]["prompt"] == "a\u2028b"


@pytest.mark.parametrize(
    "row",
    [
        {"character": ["0, 0, 32,64:b.wav", "mask.png:b.wav"]},
        {"character": ["0,0,32,64", "mask.png"], "audio": "b.wav+b.wav"},
    ],
)
def test_files_of_characters_count_from_the_folder_of_the_table(
    submit: Submit, folder: Path, row: dict[str, Any]
) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (40, 0, 64, 64))
    mask.save(folder / "mask.png")
    (job,) = submit(json.dumps([{"image": "a.png", "output": "o.mp4", **row}]), "jobs.json")
    voice = str(folder / "b.wav")
    assert job["characters"] == [["0,0,32,64", voice], [str(folder / "mask.png"), voice]]


def test_values_as_spreadsheets_write_them(submit: Submit, folder: Path) -> None:
    head = (
        "image;audio;output;num_clip;segment;sample_shift;enable_vae_parallel;no_fold_last_step;audio_scale;"
        "lora"
    )
    (folder / "style.safetensors").touch()
    row = "a.png;b.wav;o.mp4;2,0;60,5s;3,0;yes;TRUE;1,4;style.safetensors:0,8".replace(
        ":0,8", ":0.8"
    )
    (job,) = submit(f"{head}\n{row}\n")
    assert (
        job["options"]["audio_scale"] == 1.4
        and job["options"]["num_clip"] == 2
        and job["segment_s"] == 60.5
    )
    assert job["gpus"]["enable_vae_parallel"] and not job["options"]["fold_last_step"]
    assert job["loras"] == [f"{folder / 'style.safetensors'}:0.8"]
    (off,) = submit(f"{head}\n{row.replace('yes;TRUE', 'No;FALSE')}\n")
    assert not off["gpus"]["enable_vae_parallel"] and off["options"]["fold_last_step"]


HEAD = "image,audio,output,num_clip\n"
ROW = "a.png,b.wav,o.mp4,2\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (CHINESE.encode("gbk"), "jobs.csv, line 2: the text is not in UTF-8; it looks like GBK"),
        (PLAIN.replace("calm", "café").encode("cp1252"), "it looks like cp1252"),
        (PLAIN.replace("calm man", "спокойный мужчина").encode("cp1251"), "it looks like cp1251"),
        (PLAIN.replace("calm man", "おだやかなひと").encode("cp932"), "it looks like Shift-JIS"),
        (PLAIN.encode("utf-16-le"), "UTF-16 without a mark"),
        (b"PK\x03\x04" + bytes(30), "a spreadsheet (.xlsx or .ods)"),
        (b"\xd0\xcf\x11\xe0" + bytes(30), "an old spreadsheet"),
        ("", "there are no rows"),
        ("image,audio\n\n", "there are no rows"),
        (HEAD + ROW + "\na.png,b.wav,p.mp4,x", "row 4: Invalid value for '--num_clip'"),
        (HEAD + '"a.png\n",b.wav,o.mp4,2\na.png,b.wav,p.mp4,2,c', "row 3: column 5 has no name"),
        (HEAD + ROW + "gone.png,b.wav,p.mp4,2", "row 3: --image: "),
        (HEAD + ROW + ROW, "row 3: --output: "),
        (HEAD + 'a.png,b.wav,"o.mp4,2', "row 2: unexpected end of data"),
        ("image,audio,ouput\na.png,b.wav,o.mp4", "did you mean 'output'?"),
        (
            "image,audio,output,Image\na.png,b.wav,o.mp4,c.png",
            "row 1: columns 1 and 4 have one name",
        ),
        ("image,audio,output,save_file\na.png,b.wav,o.mp4,p.mp4", "two columns give --output"),
        ("image,audio,output,frame_num\na.png,b.wav,o.mp4,9", "row 2: --frame_num: "),
        (HEAD + 'a.png,b.wav,o.mp4,"1,000"', "row 2: Invalid value for '--num_clip'"),
        ("image,audio,output,fp8\na.png,b.wav,o.mp4,maybe", "row 2: Invalid value for '--fp8'"),
        ('{"image": "a.png"}\n{"image": ', "line 2: is not JSON"),
        ('["a.png"]', "item 1: expected an object"),
        (
            HEAD + "https://example.org/a.png,b.wav,o.mp4,2",
            "row 2: --image: https://example.org/a.png",
        ),
        ('[{"image": "a\\u0000.png"}]', "item 1: 'image': 'a\\x00.png' contains characters"),
        ('[{"output": "\\ud800.mp4"}]', "item 1: 'output': "),
        ('[{"model": "%s"}]' % ("x" * 300), "item 1: --image is missing"),
        ('[{"image": {"path": "a.png"}}]', "item 1: 'image': expected one value"),
        ('[{"fp8": {"on": 1}}]', "item 1: 'fp8': expected one value"),
        ('{"image": "a.png", "Image": "b.png"}', "names a column twice"),
        ('{"a":' * 9000, "nested too deeply"),
        ("image,audio,output,json\na.png,b.wav,o.mp4,TRUE", "no option is called 'json'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(submit: Submit, data: Any, said: str) -> None:
    code, message = submit(data)
    assert code in {2, 3} and said in message, message


def test_names_of_save_dir_differ_in_one_second(submit: Submit) -> None:
    rows = "image,audio,save_dir\n" + "a.png,b.wav,out\n" * 3
    assert len({job["output"] for job in submit(rows)}) == 3


def test_every_spelling_of_a_column_is_of_one_option() -> None:
    owners: dict[str, set[str]] = {}
    for option in generate.params:
        if isinstance(option, Option) and option.section != Section.CONSOLE:
            for name in (option.name, *option.opts, *option.secondary_opts):
                owners.setdefault(spelled(name), set()).add(option.name)
    assert all(len(names) == 1 for names in owners.values()) and "savefile" in owners


_cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(_cells, _cells), min_size=1, max_size=5), st.sampled_from(",;\t"))
def test_any_quoted_text_is_read_as_it_was_written(
    rows: list[tuple[str, str]], delimiter: str
) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = [
        f"image{delimiter}prompt",
        *(delimiter.join(map(quoted, ("x" + a, b))) for a, b in rows),
    ]
    found = parse_table("\r\n".join(lines), "t.csv")
    wanted = [{"image": ("x" + a).strip(), "prompt": b.strip()} for a, b in rows]
    assert [dict(row.values) for row in found] == [
        {name: cell for name, cell in row.items() if cell} for row in wanted
    ]
    assert [row.place for row in found] == [f"t.csv, row {n}" for n in range(2, len(rows) + 2)]


def test_lists_of_videos_as_editors_save_them(folder: Path) -> None:
    names = ["a b.mp4", "it's#1.mp4", "x\u2028y.mp4"]
    lines = [
        "ffconcat version 1.0",
        "# mine",
        "",
        "file 'a b.mp4'",
        "  file it\\'s#1.mp4",
        "file 'x\u2028y.mp4'",
    ]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for end in ("\n", "\r\n", "\r"):
            (folder / "list.txt").write_bytes(end.join(lines).encode(encoding))
            assert read_list(folder / "list.txt") == [folder / name for name in names]


def test_a_list_in_capitals_is_a_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "LIST.TXT").write_text("file 'gone.mp4'\n")
    assert main(["concat", str(folder / "LIST.TXT"), "-o", str(folder / "o.mp4")]) == 3
    assert "gone.mp4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["matrix.toml", "MATRIX.TOML", "matrix.json", "MATRIX.JSON"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_matrix_as_editors_save_it(folder: Path, name: str, encoding: str) -> None:
    is_json = name.lower().endswith("json")
    text = (
        '{"axes": {"infer_frames": [16, 24]}}'
        if is_json
        else "[axes]\r\ninfer_frames = [16, 24]\r\n"
    )
    (folder / name).write_bytes(text.encode(encoding))
    assert [dict(cell) for cell in read_matrix(folder / name).cells()] == [
        {"infer_frames": 16}, {"infer_frames": 24},
    ]  # fmt: skip
