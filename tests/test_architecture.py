"""The house rules hold for the whole package, and each of them can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from house_imports import check_outside, check_process, check_rooms
from house_rules import (
    CHECKS,
    MAX_FILE_LINES,
    MAX_MEDIAN_LINES,
    check_file_size,
    check_function_size,
    check_globals,
    check_handlers,
    check_models,
    check_nesting,
    check_parameters,
    check_words,
    function_lines,
    median_function_lines,
)
from house_source import Check, Source, read_tree

ROOT = Path(__file__).parents[1]
PACKAGE = read_tree(ROOT / "src" / "lipcast")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_package_keeps_the_rule(check: Check) -> None:
    breaches = [breach for source in PACKAGE for breach in check(source)]
    assert not breaches, "\n" + "\n".join(breaches)


def test_median_function_is_short() -> None:
    assert sum(len(list(source.functions())) for source in PACKAGE) > 20
    assert median_function_lines(PACKAGE) <= MAX_MEDIAN_LINES


def test_test_files_are_short() -> None:
    breaches = [
        breach for source in read_tree(ROOT / "tests") for breach in check_file_size(source)
    ]
    assert not breaches, "\n" + "\n".join(breaches)


BREACHES = (
    (check_rooms, "config/a.py", "from lipcast.models import dit"),
    (check_rooms, "models/a.py", "from lipcast.env import logger"),
    (check_rooms, "models/a.py", "def f():\n    import lipcast.engine.session"),
    (check_rooms, "engine/a.py", "from lipcast.media.video import VideoWriter"),
    (check_rooms, "engine/a.py", "from lipcast import media"),
    (check_rooms, "media/a.py", "import lipcast.models"),
    (check_rooms, "api.py", "from lipcast.cli.main import run"),
    (check_rooms, "jobs/a.py", "from lipcast.serve import app"),
    (check_rooms, "config/a.py", "from . import config"),
    (check_rooms, "attic/a.py", ""),
    (check_outside, "config/a.py", "import numpy"),
    (check_outside, "config/a.py", "def f():\n    import torch"),
    (check_outside, "media/a.py", "import torch.nn"),
    (check_outside, "cli/a.py", "def f():\n    import torch"),
    (check_outside, "engine/a.py", "import torch.distributed as dist"),
    (check_outside, "engine/a.py", "from torch import distributed"),
    (check_outside, "engine/a.py", "from torch.distributed import send"),
    (check_outside, "models/dit.py", "def f():\n    import transformers"),
    (check_outside, "models/text.py", "from transformers.models.umt5 import UMT5Config"),
    (check_outside, "engine/a.py", "import av"),
    (check_outside, "api.py", "import fastapi"),
    (check_outside, "jobs/store.py", "import ray"),
    (check_process, "engine/a.py", "import os\nx = os.environ['A']"),
    (check_process, "cli/a.py", "import os\nx = os.getenv('A')"),
    (check_process, "media/a.py", "print(1)"),
    (check_process, "api.py", "import sys\nsys.exit(1)"),
    (check_process, "api.py", "raise SystemExit"),
    (check_process, "engine/a.py", "import torch\ntorch.distributed.barrier()"),
    (check_file_size, "config/a.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (check_function_size, "config/a.py", "def f():\n" + "    x = 1\n" * 60),
    (
        check_nesting,
        "config/a.py",
        "def f():\n if a:\n  for b in c:\n   with d:\n    try: e\n    finally: g",
    ),
    (
        check_nesting,
        "config/a.py",
        "class A:\n def f():\n  while a:\n   if b:\n    if c:\n     if d: e",
    ),
    (check_parameters, "config/a.py", "def f(a, b):\n    return a"),
    (check_parameters, "config/a.py", "def f(*, a=1):\n    a = 2"),
    (
        check_parameters,
        "config/a.py",
        "class A:\n    def __init__(self, a): ...\n    def f(self, **kw): pass",
    ),
    (check_globals, "config/a.py", "CACHE = {}"),
    (check_globals, "config/a.py", "table = {'a': 1}"),
    (check_globals, "config/a.py", "TABLE = {'a': 1}\ndef f():\n    TABLE['a'] = 2"),
    (check_globals, "config/a.py", "def f(other):\n    other.TABLE.update(a=1)"),
    (check_globals, "config/a.py", "SEEN = dict(a=1)"),
    (check_globals, "config/a.py", "x: list[int] = []"),
    (check_globals, "config/a.py", "from collections import defaultdict\nx = defaultdict(int)"),
    (check_globals, "config/a.py", "class A:\n    seen = set()"),
    (check_globals, "config/a.py", "def f():\n    global x\n    x = 1"),
    (check_words, "config/a.py", "x = 1  # TODO: more"),
    (check_words, "config/a.py", "def f():\n    raise NotImplementedError"),
    (check_words, "config/a.py", '"""A stub."""'),
    (check_words, "config/a.py", 'x = "/work/data"'),
    (check_handlers, "config/a.py", "try:\n    f()\nexcept:\n    g()"),
    (check_handlers, "config/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (check_models, "models/a.py", "def f(x):\n    return x.cuda()"),
    (check_models, "models/a.py", "import torch\nx = torch.randn(3)"),
    (check_models, "models/a.py", "class A(nn.Module):\n def forward(self, x):\n  self.last = x"),
    (check_models, "models/a.py", "class A(nn.Linear):\n def forward(self, x):\n  self.n += 1"),
)


@pytest.mark.parametrize(("check", "path", "text"), BREACHES)
def test_each_rule_can_fail(check: Check, path: str, text: str) -> None:
    breaches = list(check(Source.of(path, text)))
    assert len(breaches) >= 1
    assert all(breach.startswith(f"{path}:") for breach in breaches)


def test_every_rule_is_shown_to_fail() -> None:
    assert {check for check, _, _ in BREACHES} == set(CHECKS)


ALLOWED = (
    ("cli/a.py", "import sys\nfrom lipcast.api import load\nprint(1)\nsys.exit(2)"),
    (
        "api.py",
        "from lipcast.media.video import VideoWriter\nfrom lipcast.engine.session import Session",
    ),
    ("models/text.py", "def f():\n    from transformers.models.umt5 import UMT5EncoderModel"),
    (
        "models/a.py",
        "class A(nn.Module):\n def __init__(self):\n  self.x = 1",
    ),
    ("models/a.py", "class Ring:\n def write(self, x):\n  self.last = x"),
    ("config/a.py", "TABLE = {'a': 1}\ndef f(x):\n    return TABLE[x], TABLE.get(x)"),
    ("config/a.py", "def f(x, step):\n    del step\n    return x"),
    ("env.py", "import os\nx = os.environ.get('A')"),
    (
        "config/a.py",
        "if TYPE_CHECKING:\n    import math\nNAMES = ('a', 'b')\nTABLE: Mapping[str, int] = {}",
    ),
    ("config/a.py", "def f():\n if a: b\n elif c: d\n elif e: g\n elif h: i\n else: j"),
    (
        "config/a.py",
        "class P(Protocol):\n def f(self, a: int) -> int: ...\n def __exit__(self, a): return 1",
    ),
    ("config/a.py", "def f():\n    '''" + "A long story.\n" * 70 + "'''\n    return 1"),
    ("config/a.py", "try:\n    f()\nexcept KeyError:\n    pass"),
)


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_is_allowed_passes(path: str, text: str) -> None:
    source = Source.of(path, text)
    assert [breach for check in CHECKS for breach in check(source)] == []


def test_lengths_are_counted_without_docstrings() -> None:
    source = Source.of(
        "config/a.py", 'def f():\n    """One.\n\n    Two.\n    """\n    x = 1\n    return x\n'
    )
    assert [function_lines(function) for function in source.functions()] == [3]
    assert median_function_lines([source]) == 3


def _modules_after(code: str) -> set[str]:
    """The names in sys.modules after `code` ran in a fresh interpreter."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n"))


HEAVY = {"torch", "numpy", "transformers", "av", "PIL", "safetensors"}


def test_import_is_light() -> None:
    assert _modules_after("import lipcast") & (HEAVY | {"click", "rich"}) == set()
    assert "numpy" in _modules_after("import numpy")
