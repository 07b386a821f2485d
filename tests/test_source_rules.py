"""Rules about the source that neither ruff nor import-linter can express.

A rule takes one module and yields a line for each breach. `BREACHES` shows that every rule can fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 10
UNFINISHED = re.compile(r"\b(stub|stubbed|NotImplementedError)\b|(?<![\w.~])/(root|home)/", re.I)
PRIVATE = re.compile(
    r"\b(Past(Block|Recorder)|stewards?|rungs?|(Layout)?Wishes|bring_in|crews?|inlets?|outlets?"
    r"|judgements?|insist(s|ed)?|PlannedVideo|given way|in the midst)\b",
    re.I,
)
"""Words of this project alone; docs/architecture.md has those of the field."""
RANDOM_CALL = re.compile(r"^torch\.(rand|randn|randint|randperm|normal|manual_seed)(_like)?$")
DISPLAYS = (ast.List, ast.Dict, ast.Set)
MUTABLE_TYPES = {"list", "dict", "set", "defaultdict", "deque", "Counter"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[str, ast.Module], Iterator[str]]
HEAVY = {"torch", "numpy", "transformers", "av", "PIL", "safetensors", "click", "rich"}


def functions(tree: ast.Module) -> list[Function]:
    """Return every function and method of a module, nested ones included."""
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def num_lines(function: Function) -> int:
    """Return the lines of a function from `def` to its end, the docstring not counted."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
    return lines


def functions_are_short(_path: str, tree: ast.Module) -> Iterator[str]:
    """No function is longer than `MAX_FUNCTION_LINES`."""
    for function in functions(tree):
        if num_lines(function) > MAX_FUNCTION_LINES:
            yield f"{function.lineno}: {function.name} has {num_lines(function)} lines"


def modules_hold_no_state(_path: str, tree: ast.Module) -> Iterator[str]:
    """No module or class has an empty list, dict or set, which is there to be filled by somebody."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))]
    for node in (statement for body in bodies for statement in body):
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        is_empty = isinstance(value, DISPLAYS) and not any(
            isinstance(part, ast.expr) for part in ast.iter_child_nodes(value)
        )
        if is_empty or (isinstance(value, ast.Call) and ast.unparse(value.func) in MUTABLE_TYPES):
            yield f"{node.lineno}: state of a module; give it an owner"


def process_groups_stay_in_parallel(path: str, tree: ast.Module) -> Iterator[str]:
    """`torch.distributed` is used below parallel/ only."""
    if path.startswith("parallel/"):
        return
    for node in ast.walk(tree):
        names = _imported(node)
        if any(f"{name}.".startswith("torch.distributed.") for name in names):
            yield f"{getattr(node, 'lineno', 0)}: torch.distributed outside parallel"


def _imported(node: ast.AST) -> list[str]:
    """Return the dotted names that a node imports or reads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [ast.unparse(node)] if isinstance(node, ast.Attribute) else []


def models_are_pure(path: str, tree: ast.Module) -> Iterator[str]:
    """Networks draw no random numbers, and their modules write state in `__init__` only."""
    if not path.startswith("models/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and RANDOM_CALL.match(ast.unparse(node)):
            yield f"{node.lineno}: {ast.unparse(node)} in a model"
        if isinstance(node, ast.ClassDef) and any(_is_module(base) for base in node.bases):
            yield from _late_state(node)


def _is_module(base: ast.expr) -> bool:
    name = ast.unparse(base)
    return name.startswith(("nn.", "torch.nn.")) or name.endswith("Module")


def _late_state(cls: ast.ClassDef) -> Iterator[str]:
    methods = [node for node in cls.body if isinstance(node, FUNCTIONS) and node.name != "__init__"]
    for node in (node for method in methods for node in ast.walk(method)):
        if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)):
            continue
        if ast.unparse(node).startswith("self."):
            yield f"{node.lineno}: {cls.name} writes {ast.unparse(node)} after __init__"


RULES: tuple[Rule, ...] = (
    functions_are_short,
    modules_hold_no_state,
    process_groups_stay_in_parallel,
    models_are_pure,
)


def modules(folder: str) -> list[tuple[str, str]]:
    """Return (path below the folder, text) of every module in a folder of the repository."""
    root = ROOT / folder
    paths = sorted(root.rglob("*.py"))
    return [(path.relative_to(root).as_posix(), path.read_text("utf-8")) for path in paths]


PACKAGE = modules("src/lipcast")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_follows_the_rule(rule: Rule) -> None:
    breaches = [f"{path}:{line}" for path, text in PACKAGE for line in rule(path, ast.parse(text))]
    assert not breaches, "\n" + "\n".join(breaches)


BREACHES = (
    (functions_are_short, "api.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    (modules_hold_no_state, "api.py", "CACHE = {}"),
    (modules_hold_no_state, "api.py", "seen: set[str] = set()"),
    (modules_hold_no_state, "api.py", "class A:\n    seen = []"),
    (process_groups_stay_in_parallel, "engine/a.py", "import torch.distributed as dist"),
    (process_groups_stay_in_parallel, "engine/a.py", "from torch import distributed"),
    (process_groups_stay_in_parallel, "engine/a.py", "torch.distributed.barrier()"),
    (models_are_pure, "models/a.py", "x = torch.randn(3)"),
    (models_are_pure, "models/a.py", "class A(nn.Module):\n def forward(self):\n  self.x = 1"),
    (models_are_pure, "models/a.py", "class A(nn.Linear):\n def f(self):\n  self.n += 1"),
)


@pytest.mark.parametrize(("rule", "path", "text"), BREACHES)
def test_rule_finds_a_breach(rule: Rule, path: str, text: str) -> None:
    assert list(rule(path, ast.parse(text)))


ALLOWED = (
    ("api.py", 'def f():\n    """' + "A long story.\n" * 70 + '"""\n    return 1'),
    ("api.py", "TABLE = {'a': 1}\nNAMES = ['a']\ndef f():\n    seen = []"),
    ("parallel/a.py", "import torch.distributed"),
    ("models/a.py", "class A(nn.Module):\n def __init__(self):\n  self.x = 1"),
    ("models/a.py", "class Ring:\n def write(self, x):\n  self.last = x"),
    ("engine/a.py", "x = torch.randn(3)"),
)


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_is_allowed_passes(path: str, text: str) -> None:
    assert not [line for rule in RULES for line in rule(path, ast.parse(text))]


def test_median_function_is_short() -> None:
    lengths = [num_lines(f) for _, text in PACKAGE for f in functions(ast.parse(text))]
    assert len(lengths) > 1000
    assert median(lengths) <= MAX_MEDIAN_LINES


@pytest.mark.parametrize("folder", ["src", "tests", "scripts", "benchmarks", "examples"])
def test_files_are_short(folder: str) -> None:
    lengths = {path: len(text.splitlines()) for path, text in modules(folder)}
    assert max(lengths.values()) > 0
    assert {path for path, length in lengths.items() if length > MAX_FILE_LINES} == set()


def test_nothing_is_left_unfinished() -> None:
    found = [(path, match[0]) for path, text in PACKAGE for match in UNFINISHED.finditer(text)]
    assert found == []
    assert UNFINISHED.search("raise NotImplementedError")


def test_no_word_is_private() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    texts = [*PACKAGE, *((path.name, path.read_text("utf-8")) for path in pages)]
    found = [(path, match[0]) for path, text in texts for match in PRIVATE.finditer(text)]
    assert found == []
    assert PRIVATE.search("the Steward lets a rung go")


def modules_after(code: str) -> set[str]:
    """Return the names in `sys.modules` after `code` ran in a fresh interpreter."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n"))


def test_import_is_light() -> None:
    assert modules_after("import lipcast") & HEAVY == set()
    assert "numpy" in modules_after("import numpy")


BAD_IMPORTS = (
    ("memory/arena.py", "import lipcast.engine.session"),
    ("media/image.py", "import lipcast.planning.plan"),
    ("models/dit.py", "import lipcast.env"),
    ("planning/plan.py", "import torch"),
    ("config/models.py", "import numpy"),
    ("weights/load.py", "def f():\n    import transformers"),
    ("lab/report.py", "from PIL import Image"),
    ("lab/report.py", "import rich"),
    ("jobs/local.py", "import ray"),
    ("cli/serve.py", "def f():\n    import fastapi"),
    ("serve/hub.py", "import httpx2"),
    ("cli/serve.py", "import folder_paths"),
    ("jobs/local.py", "import lipcast_train"),
    ("cli/serve.py", "import livekit.rtc"),
)


def test_every_import_contract_can_fail(tmp_path: Path) -> None:
    for path, text in PACKAGE:
        target = tmp_path / "lipcast" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        bad = "".join(f"\n{line}\n" for place, line in BAD_IMPORTS if place == path)
        target.write_text(text + bad, "utf-8")
    contracts = (ROOT / ".importlinter").read_text("utf-8")
    (tmp_path / ".importlinter").write_text(contracts, "utf-8")
    code = "from importlinter.cli import lint_imports_command as run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    names = re.findall(r"^name = (.*)$", contracts, re.MULTILINE)
    kept = [name for name in names if f"{name} BROKEN" not in done.stdout]
    assert kept == [], done.stdout
