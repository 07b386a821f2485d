"""The one way to open a session: a backend builds its parts, on this device or on several.

Input: a spec, conditioning inputs, perhaps a snapshot. Output: `SessionParts`. `LocalBackend` computes in
this process; `parallel.DistributedModel` is the backend of several devices.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.executor import LaneExecutor
from lipcast.engine.session import SessionParts
from lipcast.engine.session_builder import (
    Conditioning,
    MakeExecutor,
    MakeGraphs,
    Networks,
    PlannedMemory,
    SessionBuilder,
)
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.graphs import CudaGraphs
from lipcast.memory.manager import MemoryManager


class Backend(Protocol):
    """Opens the sessions of one loaded model."""

    def adapted(self, options: GenerateOptions) -> GenerateOptions:
        """Return the options with which this backend makes a video."""

    def open(
        self, spec: VideoSpec, conditioning: Conditioning, snapshot: SessionSnapshot | None
    ) -> SessionParts:
        """Return the parts of a new session, or of one that continues from a snapshot.

        Raises MemoryBudgetError where it does not fit, AdmissionError where other sessions hold the memory.
        """

    def close(self) -> None:
        """Stop the processes of the backend. Safe to call again."""


class LocalBackend:
    """Sessions of one device, in this process."""

    def __init__(
        self,
        networks: Networks,
        manager: MemoryManager | None = None,
        *,
        make_executor: MakeExecutor = LaneExecutor,
        make_graphs: MakeGraphs | None = None,
    ) -> None:
        """Plan memory with `manager`; without one, keep everything on the device.

        `make_graphs`: what ticks are recorded with where the plan wants that; by default CUDA graphs.
        """
        self.networks, self.manager = networks, manager
        self.device_context = (
            DeviceContext.of(networks.device) if manager is None else manager.device_context
        )
        self._make_executor, self._make_graphs = make_executor, make_graphs
        if make_graphs is None and networks.device.type == "cuda":
            self._make_graphs = CudaGraphs

    def adapted(self, options: GenerateOptions) -> GenerateOptions:
        """Return the options unchanged: one device makes any video that fits."""
        return options

    def open(
        self, spec: VideoSpec, conditioning: Conditioning, snapshot: SessionSnapshot | None
    ) -> SessionParts:
        """Return the parts of a session; see `Backend.open`."""
        manager = self.manager
        with nullcontext() if manager is None else manager.lock:
            planned = None
            if manager is not None:
                admission = manager.admit(
                    spec.geometry, spec.options, num_characters=conditioning.num_characters
                )
                planned = PlannedMemory(manager, admission)
            builder = SessionBuilder(
                self.networks,
                conditioning,
                spec,
                planned,
                device_context=self.device_context,
                make_executor=self._make_executor,
                make_graphs=self._make_graphs,
            )
            return builder.open(snapshot)

    def close(self) -> None:
        """Do nothing: the networks are freed with their last reference."""
