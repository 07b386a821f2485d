"""Memory and power of a process while it runs, seen from outside.

Input: the id of a process. Output: `Samples`. GPUs are read through NVML where the package and a
driver are there: the memory in use on the whole card, as `nvidia-smi` shows it, and its energy.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PERIOD_S = 0.2
_STATUS = Path("/proc/self/status")
_MOST_SAMPLES = 240
"""When so many are reached every second one is dropped and the period doubles: memory is bounded."""


@dataclass
class Samples:
    """Samples of a run; `gpu_bytes` has one list a sample, one number a GPU."""

    t_s: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    """Resident memory of the process and of its children."""
    gpu_bytes: list[list[int]] = field(default_factory=list)
    gpu_peak_bytes: list[int] = field(default_factory=list)
    rss_peak_bytes: int = 0
    energy_j: float | None = None
    gpu_reason: str = ""
    """Why there are no figures of GPUs."""

    def document(self) -> dict[str, Any]:
        """Return the samples as plain data."""
        return asdict(self)


class Nvml:
    """The GPUs of this machine. `reason` says why there are none."""

    def __init__(self, library: Any = None) -> None:
        """`library` speaks NVML; by default the package nvidia-ml-py."""
        self._handles: list[Any] = []
        self.reason = ""
        try:
            self._nvml = library or importlib.import_module("pynvml")
        except ImportError:
            self.reason = "the package nvidia-ml-py is not installed"
            return
        library = self._nvml
        try:
            library.nvmlInit()
            count = library.nvmlDeviceGetCount()
            self._handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except library.NVMLError as error:
            self.reason = f"NVML: {error}"

    def used_bytes(self) -> list[int]:
        """Return the memory in use on each card."""
        return [int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles]

    def energy_j(self) -> float | None:
        """Return the energy of all cards since the driver was loaded; None where cards do not count it."""
        if not self._handles:
            return None
        try:
            count = self._nvml.nvmlDeviceGetTotalEnergyConsumption
            return float(sum(count(handle) for handle in self._handles)) / 1000
        except self._nvml.NVMLError:
            return None


class Sampler:
    """A context manager: samples from a thread until it is left."""

    def __init__(self, pid: int, *, nvml: Nvml | None = None, period_s: float = _PERIOD_S) -> None:
        self.samples = Samples()
        self._pid, self._period_s = pid, period_s
        self._nvml = nvml or Nvml()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began_j = self._nvml.energy_j()

    def __enter__(self) -> Self:
        self.samples.gpu_reason = self._nvml.reason
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        ended_j = self._nvml.energy_j()
        if self._began_j is not None and ended_j is not None:
            self.samples.energy_j = ended_j - self._began_j

    def _run(self) -> None:
        began = time.monotonic()
        while True:
            self._take(time.monotonic() - began)
            if self._done.wait(self._period_s):
                return

    def _take(self, t_s: float) -> None:
        rss = rss_bytes(self._pid)
        used = self._nvml.used_bytes()
        seen = self.samples
        seen.rss_peak_bytes = max(seen.rss_peak_bytes, rss)
        peaks = seen.gpu_peak_bytes or [0] * len(used)
        seen.gpu_peak_bytes = [max(pair) for pair in zip(peaks, used, strict=True)]
        if not rss:
            return
        seen.t_s.append(round(t_s, 3))
        seen.rss_bytes.append(rss)
        seen.gpu_bytes.append(used)
        if len(seen.t_s) >= _MOST_SAMPLES:
            self._period_s *= 2
            seen.t_s, seen.rss_bytes = seen.t_s[::2], seen.rss_bytes[::2]
            seen.gpu_bytes = seen.gpu_bytes[::2]


def own_peak_rss_bytes() -> int:
    """Return the most memory that was resident in this process.

    Not the figure of `getrusage` where Linux has a better one: that begins with what the process had
    that started this one.
    """
    lines = _STATUS.read_text("utf-8").splitlines() if _STATUS.exists() else []
    peaks_kib = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * peaks_kib[0] if peaks_kib else _peak_of_system()


def _peak_of_system() -> int:
    """Return the peak where there is no /proc: kibibytes on most systems, bytes on macOS and Windows."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children; 0 where it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(int(member.memory_info().rss) for member in family)
    except psutil.Error:
        return 0
