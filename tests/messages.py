"""The sentences that the source may tell a user, found in its syntax trees.

A sentence is the constant text of an error that is made, or of a warning that is logged, with "…" for
each value; constants and functions of the same module that the message names are read too. Text that
only repeats another message has no words of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lipcast import errors

SOURCE = Path(__file__).parents[1] / "src" / "lipcast"
_WARNS = {"warn", "warning"}
_MAKERS = {"_refused": "NotBuiltError", "_valued": "NotBuiltError", "Explanation": "other errors"}
"""What else makes an error of its text."""
_APART = " | "
"""Between texts that may not follow one another."""


@dataclass(frozen=True)
class Message:
    """One place that makes an error or a warning, and its text."""

    kind: str
    text: str
    place: str

    @property
    def is_sentence(self) -> bool:
        return re.search(r"[a-z]+ [a-z]+ [a-z]+|[a-z]+ … [a-z]+", self.text) is not None


class _Module:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text("utf-8"))

    @cached_property
    def named(self) -> dict[str, str]:
        """The text of every constant and function, by its name."""
        found: dict[str, list[str]] = {}
        for node in ast.walk(self.tree):
            for name, text in _named_texts(node):
                found.setdefault(name, []).append(text)
        return {name: _APART.join(texts) for name, texts in found.items()}

    def messages(self, classes: set[str]) -> Iterator[Message]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and (kind := _kind(node, classes)):
                text = _APART.join(self._whole_text(argument) for argument in node.args)
                place = f"{self.path.relative_to(SOURCE)}:{node.lineno}"
                yield Message(kind, " ".join(text.split()), place)

    def _whole_text(self, node: ast.AST) -> str:
        own = _text(node)
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        return _APART.join([own, *(self.named[name] for name in sorted(names & self.named.keys()))])


def _named_texts(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The text of a function, or of what is assigned, by the names it is known under."""
    if isinstance(node, ast.FunctionDef):
        yield node.name, _APART.join(_text(statement) for statement in _without_docstring(node))
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        yield from ((name, _text(node.value)) for name in names)


def _kind(call: ast.Call, classes: set[str]) -> str:
    """The class of an error, "warning", or nothing."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name in classes or name in _MAKERS:
        return _MAKERS.get(name, name)
    is_warning = isinstance(call.func, ast.Attribute) and call.func.attr in _WARNS
    return "warning" if is_warning else ""


def _without_docstring(function: ast.FunctionDef) -> list[ast.stmt]:
    return function.body[1:] if ast.get_docstring(function) else function.body


def _text(node: ast.AST) -> str:
    """The constant text below a node, "…" for each value of an f-string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return "…"
    return _APART.join(filter(None, (_text(child) for child in ast.iter_child_nodes(node))))


def error_classes(modules: list[_Module]) -> set[str]:
    """The names of Lipcast's errors, and of their subclasses anywhere in the source."""
    found = {
        name for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LipcastError)
    }  # fmt: skip
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                found |= {node.name} if bases & found else set()
    return found


def all_messages() -> list[Message]:
    """Every place in the source that makes an error or a warning."""
    modules = [_Module(path) for path in sorted(SOURCE.rglob("*.py"))]
    classes = error_classes(modules)
    return [message for module in modules for message in module.messages(classes)]
