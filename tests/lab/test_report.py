"""The report is one page that needs nothing else, and shows what went in."""

from __future__ import annotations

import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn import SIDE, drawn_clip, syllable_opening
from lipcast.cli.main import main
from lipcast.lab.evaluate import EvaluationInput, evaluate
from lipcast.lab.report import read, render
from lipcast.lab.stats import interval, pareto
from lipcast.lab.svg import Bar, Line, Point, bar_plot, line_plot, scatter_plot, ticks
from lipcast.media.video import VideoWriter

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img", "input", "br"}
MIB = 2**20


class Page(HTMLParser):
    """Tags with attributes, in order; raises where they do not close in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self._open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def bench_record(window: int, status: str = "ok", repeat: int = 0) -> dict:
    record = {
        "kind": "bench", "cell": {"infer_frames": window, "model": "tiny"}, "repeat": repeat,
        "status": status, "reason": "", "started": "2026-01-01T00:00:00+00:00",
        "command": f"lipcast bench --infer_frames {window}",
    }  # fmt: skip
    if status != "ok":
        return record | {"reason": "no <room> left", "block": 7, "step": 2}
    parts = {"speech_s": 0.1, "dit_s": 1.0, "vae_s": 1.0, "mux_s": 0.1}
    row = {"frames_per_s": 5.0 + repeat, "first_frame_s": 3.0, "block_s": 2.2, "parts": parts}
    conditions = {"peak_rss_bytes": (400 + window) * MIB, "gpus": [], "gpu": None, "cpu": "a CPU"}
    predicted = {"bytes": 90 * MIB, "parts": {"weights": 60 * MIB, "rings": 30 * MIB}}
    samples = {
        "t_s": [0, 1, 2], "rss_bytes": [MIB, 300 * MIB, 410 * MIB], "gpu_bytes": [[], [], []],
        "gpu_peak_bytes": [], "energy_j": None,
    }  # fmt: skip
    document = {"rows": [row], "conditions": conditions, "predicted": predicted}
    return record | {"document": document, "samples": samples}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name, seed in (("one.mp4", 0), ("two.mp4", 1)):
        frames = np.stack(drawn_clip(syllable_opening(30, seed)))
        with VideoWriter(
            folder / name, width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1
        ) as writer:
            sound = np.repeat(syllable_opening(30, seed), 640) * np.sin(np.arange(30 * 640))
            writer.write(frames, sound.astype(np.float32)[:, None])
    records = [
        bench_record(48), bench_record(48, repeat=1), bench_record(32),
        bench_record(24, "out of memory"),
    ]  # fmt: skip
    evaluated = evaluate(EvaluationInput(folder / "one.mp4")).document()
    for window in (48, 32):
        quality = {"kind": "quality", "cell": {"infer_frames": window}, "evaluation": evaluated}
        records.append(quality)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "results.jsonl").write_text(lines)
    (folder / "one.json").write_text(json.dumps(evaluated, indent=2))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    paths = [folder / name for name in ("results.jsonl", "one.mp4", "two.mp4", "one.json")]
    return render(read(paths), title="A <title>")


def test_everything_is_on_the_page(page):
    seen = Page(page)
    assert seen.count("video") == 2 and seen.count("img") == 2
    assert seen.count("svg") >= 6 and seen.count("table") >= 4
    for words in (
        "A <title>", "out of memory at block 7, step 2: no <room> left", "5.50 (5.00-6.00)",
        "lipcast bench --infer_frames 32", "Quality against memory", "+ rings", "a CPU",
        "no portrait was given",
    ):  # fmt: skip
        assert words in seen.text, words


def test_the_page_needs_no_network(page):
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "@import" not in page and "url(" not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_the_page_is_for_phones_and_paper(page):
    assert 'name="viewport"' in page
    assert "@media print" in page and "@media (max-width" in page
    for plot in re.findall(r"<svg[^>]*>", page):
        assert "viewBox" in plot and "width=" not in plot


def test_the_verb(folder, tmp_path, capsys):
    output = tmp_path / "page.html"
    assert main(["report", str(folder / "one.mp4"), "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == output.stat().st_size
    assert Page(output.read_text("utf-8")).count("video") == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["none.jsonl"], 3, "none.jsonl"),
        (["none.mp4"], 3, "nothing at none.mp4"),
        (["bad.json"], 3, "lipcast evaluate --json"),
        (["one.mp4", "-o", "page.pdf"], 2, ".html"),
        (["one.mp4", "-o", "no/such/page.html"], 6, "page.html"),
    ],
)
def test_errors_say_what_is_wrong(folder, monkeypatch, capsys, arguments, exit_code, words):
    monkeypatch.chdir(folder)
    (folder / "bad.json").write_text("[1]")
    assert main(["report", *arguments]) == exit_code
    assert words in capsys.readouterr().err


def test_plots_hold_their_numbers():
    lines = [Line("a", [(0, 0), (1, 10)]), Line("b <", [(0, 5), (1, 5)])]
    plot = line_plot(lines, title="t", x_label="x", y_label="y", marks=[0.5])
    assert plot.count("<polyline") == 2 and "b &lt;" in plot and 'class="mark"' in plot
    flat = line_plot([Line("zero", [(0, 0)])], title="t", x_label="x", y_label="y")
    assert "nan" not in flat + plot
    bars = bar_plot([Bar("one", 2, 1, 3), Bar("two", 1, 1, 1)], title="t", x_label="x")
    widths = [float(w) for w in re.findall(r'class="s0" [^>]*width="([\d.]+)"', bars)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    points = [Point("p", 1, 1, best=True), Point("q", 1, 1)]
    assert scatter_plot(points, title="t", x_label="x", y_label="y").count("<circle") == 2


def test_names_in_a_scatter_plot_do_not_cover_each_other():
    near = [Point(f"sample_steps {i}, infer_frames 48", 100 + i, 0.8, False) for i in range(4)]
    plot = scatter_plot([*near, Point("far", 200, 0.9, True)], title="t", x_label="x", y_label="y")
    lines = re.findall(r'<text class="start" x="([\d.]+)" y="([-\d.]+)">sample', plot)
    assert len({round(float(y)) for _, y in lines}) == len(lines) == 4
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(3, 3) == [3]
    assert ticks(0.12, 0.31) == [0.15, 0.2, 0.25, 0.3]


def test_pareto_and_intervals():
    assert pareto([(1, 1), (2, 2), (2, 1), (3, 2)]) == [True, True, False, False]
    few = interval([1.0, 3.0])
    assert (few.mean, few.n) == (2.0, 2) and "[" not in few.text()
    data = np.random.default_rng(1).normal(0.9, 0.02, 25)
    found = interval(list(data))
    assert found.low < data.mean() < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * data.std() / 5, rel=0.15)


COMMITTED = sorted(
    path for path in (ROOT / "benchmarks").rglob("*.json*") if "node_modules" not in path.parts
)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_file_of_results_is_read(path, tmp_path, capsys):
    page = tmp_path / "r.html"
    assert main(["report", str(path), "-o", str(page)]) == 0, capsys.readouterr().err
    text = page.read_text("utf-8")
    assert "<h2>Speed</h2>" in text and "<h2>Quality</h2>" in text
    assert "n/a: the memory over time is not in these results" in text
    assert "lip sync" in text


def test_there_are_committed_results():
    assert [path.name for path in COMMITTED] == ["low_vram_study.jsonl"]


@given(st.data())
def test_a_record_that_lacks_anything_is_read(data):
    """Whatever key of a record is missing, at any depth, the page is made."""
    lines = COMMITTED[0].read_text("utf-8").splitlines()
    kinds = {json.loads(line)["kind"]: json.loads(line) for line in lines}
    records = [kinds["bench"] | {"status": "ok"}, kinds["quality"]]
    for record in records:
        inside = record
        while isinstance(inside, dict) and (keys := [key for key in inside if key != "kind"]):
            key = data.draw(st.sampled_from(keys))
            if data.draw(st.booleans()):
                del inside[key]
                break
            inside = inside[key]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        assert "<h1>" in render(read([path]), title="results")
