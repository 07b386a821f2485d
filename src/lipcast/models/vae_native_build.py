"""Compiling the native kernels for this processor, once, into a folder of the caller's choice.

Inputs: `vae_native.c` beside this file, a C compiler. Output: a loaded shared library.
Invariants: nothing is compiled for a processor without the instructions; the file's name holds
a hash of source, compiler, flags and processor, so that no other machine's library is loaded;
a library appears under its name only when it is whole.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = ("vae_native.c", "vae_native_lines.h", "vae_native_team.h")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-pthread")
NEEDED_FLAGS = frozenset({"amx_tile", "amx_bf16", "avx512_bf16", "avx512bw", "avx512vl"})
COMPILE_LIMIT_S = 120


class NativeUnavailableError(Exception):
    """This machine cannot run the native kernels; the message says why."""


def load_library(cache_dir: Path) -> ctypes.CDLL:
    """The compiled kernels; raise NativeUnavailableError where they cannot be had."""
    flags = processor_flags()
    if missing := NEEDED_FLAGS - set(flags):
        raise NativeUnavailableError(f"the processor has no {', '.join(sorted(missing))}")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NativeUnavailableError("there is no C compiler (cc, gcc or clang)")
    path = cache_dir / f"vae-{_fingerprint(compiler, flags)}.so"
    try:
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path}: {error}") from error


def processor_flags() -> tuple[str, ...]:
    """The instruction sets that the kernel reports; empty where it reports none."""
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists():
        return ()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return tuple(line.split(":", 1)[1].split())
    return ()


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\n".join((compiler, *FLAGS, *flags)).encode())
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:20]


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / SOURCES[0]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, str(source), "-o", str(made)]
        try:
            result = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=COMPILE_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise NativeUnavailableError(f"{compiler} took over {COMPILE_LIMIT_S} s") from error
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[0]
            raise NativeUnavailableError(f"{compiler} failed: {reason}")
        made.replace(path)
