"""One parsed module, as the house rules see it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One module: its path below the package ("models/dit.py"), its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def of(cls, path: str, text: str) -> Source:
        return cls(path, text, ast.parse(text))

    @property
    def room(self) -> str:
        first = self.path.split("/")[0].removesuffix(".py")
        return "" if first in {"__init__", "__main__"} else first

    def breach(self, node: ast.AST | int, sentence: str) -> str:
        line = node if isinstance(node, int) else getattr(node, "lineno", 1)
        return f"{self.path}:{line}: {sentence}"

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, FUNCTIONS))


Check = Callable[[Source], Iterator[str]]


def read_tree(root: Path) -> list[Source]:
    """Every module below `root`, sorted by path."""
    paths = sorted(root.rglob("*.py"))
    return [Source.of(path.relative_to(root).as_posix(), path.read_text("utf-8")) for path in paths]
