"""Who may import whom, as tables and the checks that read them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from house_source import FUNCTIONS, Source

PACKAGE = "lipcast"

# A room is the first part of a module's path below the package. Imports go down only.
_GROUND = frozenset({"errors", "env"})
_MODELS = _GROUND | {"config", "planning", "models"}
_WEIGHTS = _MODELS | {"weights", "memory"}
_ENGINE = _WEIGHTS | {"engine"}
_PARALLEL = _ENGINE | {"parallel"}
_API = _PARALLEL | {"media", "api"}
ROOMS = MappingProxyType({
    "errors": frozenset({"errors"}),
    "env": _GROUND,
    "config": frozenset({"config", "errors"}),
    "planning": frozenset({"config", "planning", "errors"}),
    "media": _GROUND | {"config", "media"},
    "models": frozenset({"config", "planning", "errors", "models"}),
    "weights": _WEIGHTS,
    "memory": _WEIGHTS,
    "engine": _ENGINE,
    "parallel": _PARALLEL,
    "api": _API,
    "jobs": _API | {"jobs"},
    "lab": _API | {"lab"},
    "serve": _API | {"serve"},
    "cli": _API | {"jobs", "lab", "serve", "cli", ""},
    "": frozenset({"api", ""}),
})  # fmt: skip


@dataclass(frozen=True)
class Outside:
    """Where a package from outside may be imported: rooms or files; lazily: inside functions."""

    name: str
    places: tuple[str, ...]
    lazily: bool = False


_TORCH_ROOMS = ("models", "weights", "memory", "engine", "parallel", "api", "jobs", "lab", "serve")
OUTSIDE = (
    Outside("torch.distributed", ("parallel",)),
    Outside("torch", _TORCH_ROOMS),
    Outside("numpy", ("media", *_TORCH_ROOMS)),
    Outside("transformers", ("models/text.py", "models/speech.py"), lazily=True),
    Outside("av", ("media",)),
    Outside("PIL", ("media",)),
    Outside("click", ("cli",)),
    Outside("rich", ("cli",)),
    Outside("fastapi", ("serve",)),
    Outside("starlette", ("serve",)),
    Outside("uvicorn", ("serve",)),
    Outside("ray", ("jobs/ray.py",)),
)
STANDARD_LIBRARY_ROOMS = ("config", "planning", "errors", "env", "")
ENVIRONMENT_FILE = "env.py"


@dataclass(frozen=True)
class Import:
    """One imported dotted name, and where it stands."""

    name: str
    node: ast.stmt
    lazy: bool
    types_only: bool


def imports(source: Source) -> Iterator[Import]:
    """All imports; `from a import b` counts as "a.b", which its prefixes match too."""
    yield from _imports_in(source.tree, lazy=False, types_only=False)


def _imports_in(parent: ast.AST, *, lazy: bool, types_only: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node, lazy, types_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (
                Import(f"{base}.{alias.name}", node, lazy, types_only) for alias in node.names
            )
        else:
            typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith(
                "TYPE_CHECKING"
            )
            yield from _imports_in(
                node,
                lazy=lazy or isinstance(node, FUNCTIONS),
                types_only=types_only or typing_only,
            )


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def check_rooms(source: Source) -> Iterator[str]:
    """Imports inside the package go down only."""
    allowed = ROOMS.get(source.room)
    if allowed is None:
        yield source.breach(1, f"room {source.room!r} is not in the table of rooms")
        return
    for found in imports(source):
        if found.name.startswith("."):
            yield source.breach(found.node, f"relative import {found.name}; expected the full name")
        elif _within(found.name, PACKAGE):
            room = [*found.name.split("."), ""][1]
            room = "" if room.startswith("__") else room
            if room not in allowed:
                yield source.breach(
                    found.node, f"{source.room or PACKAGE} may not import {found.name}"
                )


def check_outside(source: Source) -> Iterator[str]:
    """Packages from outside stay in the rooms that the table gives them."""
    for found in imports(source):
        root = found.name.split(".")[0]
        if source.room in STANDARD_LIBRARY_ROOMS and root not in {
            *sys.stdlib_module_names,
            PACKAGE,
        }:
            yield source.breach(
                found.node, f"only the standard library may be imported here, not {found.name}"
            )
        rule = next((rule for rule in OUTSIDE if _within(found.name, rule.name)), None)
        if rule is None or found.types_only:
            continue
        if source.path not in rule.places and source.room not in rule.places:
            yield source.breach(found.node, f"{rule.name} may not be imported here")
        elif rule.lazily and not found.lazy:
            yield source.breach(found.node, f"{rule.name} may be imported inside functions only")


def check_process(source: Source) -> Iterator[str]:
    """The environment is read in one file; only the command line prints and ends the process."""
    for node in ast.walk(source.tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name in {"os.environ", "os.getenv", "os.putenv"} and source.path != ENVIRONMENT_FILE:
            yield source.breach(node, f"{name} outside {ENVIRONMENT_FILE}")
        if source.room == "cli":
            continue
        if name in {"sys.exit", "os._exit", "sys.stdout", "sys.stderr"}:
            yield source.breach(node, f"{name} outside cli")
        if isinstance(node, ast.Name) and node.id in {
            "print",
            "SystemExit",
            "exit",
            "input",
            "breakpoint",
        }:
            yield source.breach(node, f"{node.id} outside cli")
        if name.startswith("torch.distributed") and source.room != "parallel":
            yield source.breach(node, "torch.distributed outside parallel")
