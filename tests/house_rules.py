"""The house rules as checks: a parsed module in, one sentence per breach out.

Every sentence starts with "path:line: ". The numbers and tables at the top are the rules.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from statistics import median

from house_imports import check_outside, check_process, check_rooms
from house_source import FUNCTIONS, Check, Function, Source

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 10
MAX_NESTING = 3
BANNED_WORDS = re.compile(
    r"\b(TODO|FIXME|XXX|HACK|stub|stubbed|NotImplementedError)\b", re.IGNORECASE
)
_MUTABLE_CALLS = frozenset(
    {"list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter", "bytearray"}
)
_WRITERS = frozenset(
    {"append", "extend", "insert", "add", "update", "pop", "popitem", "remove", "discard", "clear"}
    | {"setdefault", "sort", "reverse"}
)
_CONSTANT = re.compile(r"^_?[A-Z][A-Z0-9_]*$")
_READ_ONLY_TYPES = re.compile(r"^(Mapping|Sequence|Final\[(Mapping|Sequence))\b")
_LEVELS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)
_RANDOM_CALLS = re.compile(
    r"^torch\.(rand|randn|randint|randperm|normal|manual_seed|bernoulli|multinomial)(_like)?$"
)


def function_lines(function: Function) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def check_file_size(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield source.breach(1, f"{lines} lines; at most {MAX_FILE_LINES}")


def check_function_size(source: Source) -> Iterator[str]:
    for function in source.functions():
        if function_lines(function) > MAX_FUNCTION_LINES:
            lines = function_lines(function)
            yield source.breach(
                function, f"{function.name} has {lines} lines; at most {MAX_FUNCTION_LINES}"
            )


def check_nesting(source: Source) -> Iterator[str]:
    for function in source.functions():
        depth = _depth(function)
        if depth > MAX_NESTING:
            yield source.breach(
                function, f"{function.name} nests {depth} levels; at most {MAX_NESTING}"
            )


def _depth(node: ast.AST) -> int:
    """Levels of control flow below `node`; an `elif` is on the level of its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child]
        is_level = isinstance(child, _LEVELS) and not (is_elif and isinstance(child, ast.If))
        deepest = max(deepest, _depth(child) + is_level)
    return deepest


def median_function_lines(sources: Iterable[Source]) -> float:
    """Over every function of the sources; 0 where there is none."""
    lengths = [function_lines(function) for source in sources for function in source.functions()]
    return median(lengths) if lengths else 0.0


# State and honesty


def check_parameters(source: Source) -> Iterator[str]:
    """Every parameter is read, but where others gave a method its shape: protocols, dunders."""
    for function in source.functions():
        is_protocol = re.fullmatch(r"__(?!init__)\w+__", function.name)
        if is_protocol or _is_declaration(function):
            continue
        names = [n for part in function.body for n in ast.walk(part) if isinstance(n, ast.Name)]
        read = {name.id for name in names if not isinstance(name.ctx, ast.Store)}
        for name in _parameter_names(function.args):
            if name not in read and name not in {"self", "cls"} and not name.startswith("_"):
                yield source.breach(function, f"{function.name} never reads its parameter {name}")


def _is_declaration(function: Function) -> bool:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return all(isinstance(node, ast.Expr) and ast.unparse(node) == "..." for node in body)


def _parameter_names(arguments: ast.arguments) -> list[str]:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in (*named, arguments.vararg, arguments.kwarg) if argument]


def check_globals(source: Source) -> Iterator[str]:
    """No module or class holds a list, dict or set that changes; nothing rebinds a global.

    A table under an UPPER_CASE name is a constant: nothing may write to it, anywhere.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield source.breach(node, f"global {', '.join(node.names)}")
        if (constant := _written_constant(node)) is not None:
            yield source.breach(node, f"{constant} is a constant, and this writes to it")
        if isinstance(node, (ast.Module, ast.ClassDef)):
            yield from _mutable_names(source, node.body)


def _mutable_names(source: Source, body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not _is_mutable(node.value):
            continue
        if isinstance(node, ast.AnnAssign) and _READ_ONLY_TYPES.match(ast.unparse(node.annotation)):
            continue
        target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        is_table = _CONSTANT.match(target) and _has_content(node.value)
        if target != "__all__" and not is_table:
            yield source.breach(
                node, f"{target} can change; use a tuple, a frozenset or a MappingProxyType"
            )


def _has_content(value: ast.expr | None) -> bool:
    """A literal table; an empty one is there to be filled."""
    if isinstance(value, ast.Dict):
        return bool(value.keys)
    return not isinstance(value, ast.Call) and bool(getattr(value, "elts", True))


def _written_constant(node: ast.AST) -> str | None:
    """The UPPER_CASE name whose content this node changes."""
    owner: ast.expr | None = None
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        owner = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value if node.func.attr in _WRITERS else None
    name = ast.unparse(owner).split(".")[-1] if owner is not None else ""
    return name if _CONSTANT.match(name) else None


def _is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in _MUTABLE_CALLS
    return isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))


def check_words(source: Source) -> Iterator[str]:
    """Nothing unfinished is left behind, and no path of one machine."""
    for number, line in enumerate(source.text.splitlines(), 1):
        found = BANNED_WORDS.search(line) or re.search(r"(?<![\w.~])/(work|opt|root|home)/", line)
        if found:
            yield source.breach(number, f"the word {found[0]!r}")


def check_handlers(source: Source) -> Iterator[str]:
    """No error is swallowed: no bare except, and no catch-all that only passes."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else ""
        silent = all(isinstance(part, ast.Pass) or ast.unparse(part) == "..." for part in node.body)
        if not caught or (caught in {"Exception", "BaseException"} and silent):
            yield source.breach(node, f"swallows {caught or 'everything'}")


def check_models(source: Source) -> Iterator[str]:
    """Models know no device and no randomness; a module writes state in `__init__` only."""
    if source.room != "models":
        return
    for node in ast.walk(source.tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name == "torch.cuda" or name.endswith(".cuda"):
            yield source.breach(node, "a model decides about CUDA")
        if _RANDOM_CALLS.match(name):
            yield source.breach(node, f"{name} in a model")
        if isinstance(node, ast.ClassDef) and any(_is_module(base) for base in node.bases):
            yield from _late_state(source, node)


def _is_module(base: ast.expr) -> bool:
    name = ast.unparse(base)
    return name.startswith(("nn.", "torch.nn.")) or name.endswith("Module")


def _late_state(source: Source, cls: ast.ClassDef) -> Iterator[str]:
    for method in cls.body:
        if not isinstance(method, FUNCTIONS) or method.name == "__init__":
            continue
        for node in ast.walk(method):
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            written = [ast.unparse(target) for target in targets if isinstance(target, ast.expr)]
            if isinstance(node, (ast.Assign, ast.AugAssign)) and any(
                t.startswith("self.") for t in written
            ):
                yield source.breach(node, f"{cls.name}.{method.name} writes {written[0]}")


CHECKS: tuple[Check, ...] = (
    check_rooms,
    check_outside,
    check_process,
    check_file_size,
    check_function_size,
    check_nesting,
    check_parameters,
    check_globals,
    check_words,
    check_handlers,
    check_models,
)
