"""Opening the .tflite models that users supply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lipcast.errors import CheckpointError, InputError


def open_tflite(path: Path, *, flag: str, quiet: bool = False) -> Any:
    """Return an interpreter with its tensors allocated, on one CPU thread; `flag` is named in errors.

    Raises InputError where the package is missing, CheckpointError where the file is no model.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise InputError(
            f"--{flag}: expected the package ai-edge-litert, found none; pip install lipcast[lab]"
        ) from error
    if not path.is_file():
        raise CheckpointError(f"--{flag}: expected a .tflite file, found nothing at {path}")
    try:
        kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if quiet else OpResolverType.AUTO
        interpreter: Any = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=kind)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"--{flag}: {path} cannot be read ({error})") from error
    return interpreter
