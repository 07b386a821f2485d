"""The pages of `--help`, and the completion of the shell."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_process import run_process

from lipcast.cli.app import make_app
from lipcast.cli.main import main

VIDEO_VERBS = ("generate", "info", "plan", "bench")
VERBS = (*VIDEO_VERBS, "pull", "models", "convert", "encode-prompt", "doctor")


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"lipcast {verb} " in shown
    assert ("--infer_frames" in shown) is (verb in VIDEO_VERBS)
    assert "--json" in shown


def shown_help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


def test_help_of_generate_starts_with_what_people_need(capsys: pytest.CaptureFixture[str]) -> None:
    shown = shown_help(capsys, "generate")
    listed = shown.partition("Main options:")[2].splitlines()
    options = [line.split()[0].rstrip(",") for line in listed if line.startswith("  -")]
    assert options[:7] == ["--image", "--audio", "--text", "--prompt", "-o", "--size", "--vram"]
    headings = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[0] == "Main options:" and headings[-1] == "Examples:"
    assert "--frame_num " not in shown


@pytest.mark.parametrize("width", ["80", "120"])
def test_help_pages_fit_and_show_one_example_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for name, command in make_app().commands.items():
        shown = shown_help(capsys, name)
        head, _, examples = shown.partition("\nExamples:\n")
        assert max(map(len, head.splitlines())) <= int(width), name
        expected = [
            line for example in getattr(command, "examples", ()) for line in example.split("\n")
        ]
        assert [line[2:] for line in examples.splitlines()] == expected, name
        assert all(line.startswith(("lipcast ", "    --")) for line in expected), name
    assert max(map(len, shown_help(capsys).splitlines())) <= int(width)
    assert "..." not in shown_help(capsys).replace("[ARGS]...", ""), "a summary was cut"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("lipcast gen", {"generate"}),
        ("lipcast generate --kv", {"--kv_precision"}),
        ("lipcast generate --kv_precision f", {"fp32", "fp8"}),
        ("lipcast job c", {"cancel"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words: str, completed: set[str]) -> None:
    *_, last = words.split(" ")
    answer = run_process(
        [], _LIPCAST_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
    )
    found = {line.partition(",")[2] for line in answer.stdout.splitlines()}
    assert found == completed, last


def test_completion_is_turned_on_by_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show-completion", "bash"]) == 0
    assert capsys.readouterr().out == 'eval "$(_LIPCAST_COMPLETE=bash_source lipcast)"\n'
    assert (
        "complete -o nosort -F _lipcast_completion"
        in run_process([], _LIPCAST_COMPLETE="bash_source").stdout
    )


def test_help_and_info_start_without_torch() -> None:
    calls = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS), ["info", "--json"]]
    calls += [["models", "--json"]]
    script = (
        "import sys; from lipcast.cli.main import main\n"
        f"assert [main(call) for call in {calls!r}] == [0] * {len(calls)}\n"
        "heavy = {'torch', 'transformers', 'av', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
