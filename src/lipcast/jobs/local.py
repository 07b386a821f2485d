"""Make segments with a model on this machine, which stays loaded between them.

Input: requests in plain data, as `job submit` makes them. Output: segments, as `jobs.tasks` asks for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipcast import api
from lipcast.config.direction import Direction
from lipcast.config.gpu_options import GpuOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.engine.session import Session
from lipcast.engine.snapshot_file import read_snapshot, write_snapshot
from lipcast.jobs.tasks import JobEstimate, SegmentTask
from lipcast.jobs.waiting import report_waits
from lipcast.media.characters import Character, open_sound
from lipcast.media.image import load_portrait

_MODEL_KEYS = ("model", "device", "precision", "loras", "decoder", "memory", "gpus")


class LocalRenderer:
    """Makes segments one after the other; jobs with the same model share it."""

    width = 1

    def __init__(
        self,
        on_block: Callable[[int], None] | None = None,
        *,
        ram_bytes: int | None = None,
        model: api.Lipcast | None = None,
    ) -> None:
        """Call `on_block` with the number of frames of every block that was written.

        ram_bytes: host memory that plans keep to, for jobs without --ram. model: makes all jobs, and is
        closed by its owner; None: each job's model is loaded.
        """
        self._ram_bytes = ram_bytes
        self._on_block = on_block or (lambda _: None)
        self._shared = model
        self._key: list[Any] = []
        self._model: api.Lipcast | None = None

    def close(self) -> None:
        """Close the model, and the processes that it may have on several GPUs."""
        if self._model is not None:
            self._model.close()
        self._model = None

    def estimate(self, request: Mapping[str, Any]) -> JobEstimate:
        model = self._load(request)
        options = api.make_options(request["options"])
        portrait = load_portrait(request["image"], crop=options.crop)
        spec = model.spec(options, height=portrait.height, width=portrait.width)
        sound = open_sound(**_voices(request), portrait=portrait, options=options)
        num_blocks = model.timeline(sound, spec).num_blocks
        assert num_blocks is not None, "the length of a file is known"
        return JobEstimate(num_blocks, spec.geometry.height, spec.geometry.width, spec.described())

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        with self._open(request, task) as session:
            edges = task.edges
            blocks = session if edges is None else edges.body(session)
            num_frames, waits_s = 0, list[float]()
            began_s = time.perf_counter()
            watched = report_waits(blocks, waits_s.append)
            with closing(api.save_blocks(watched, task.video_to, after=task.before)) as saved:
                for block in saved:
                    num_frames += len(block.frames)
                    self._on_block(len(block.frames))
            mux_s = time.perf_counter() - began_s - sum(waits_s)
            if edges is not None:
                edges.save(task.snapshot_to)
            else:
                assert session.snapshot is not None, "a segment has at least one block"
                write_snapshot(task.snapshot_to, session.snapshot)
            report = session.report()
            report["seconds"] = {**report["seconds"], "mux_s": mux_s}
            return {"frames": num_frames, "video": session.spec.described(), **report}

    def _open(self, request: Mapping[str, Any], task: SegmentTask) -> Session:
        model, prompt = self._load(request), request["prompt"]
        device = model.bundle.device
        return model.stream(
            image=request["image"],
            **_voices(request, task.audio),
            prompt=Path(prompt) if request["prompt_is_file"] else prompt,
            direction=Direction(**request.get("direction", {})),
            snapshot=None if task.snapshot is None else read_snapshot(task.snapshot, device),
            end_block=task.end_block,
            options=api.make_options(request["options"]),
        )

    def _load(self, request: Mapping[str, Any]) -> api.Lipcast:
        if self._shared is not None:
            return self._shared
        key = [request[name] for name in _MODEL_KEYS]
        if self._model is None or self._key != key:
            self.close()  # before the next one is loaded
            memory = MemoryOptions(**request["memory"])
            if memory.ram is None and self._ram_bytes is not None:
                memory = replace(memory, ram=f"{self._ram_bytes}B")
            self._model = api.load(
                request["model"],
                device=request["device"],
                precision=request["precision"],
                loras=request["loras"],
                decoder=request["decoder"] and Path(request["decoder"]),
                expected=api.make_options(request["options"]),
                memory_options=memory,
                gpu_options=GpuOptions(**request["gpus"]),
            )
            self._key = key
        return self._model


def _voices(request: Mapping[str, Any], audio: Path | None = None) -> dict[str, Any]:
    """Return what is said in a job: by one person, or by several characters."""
    characters = [Character(region, voice) for region, voice in request.get("characters", ())]
    if characters:
        return {"audio": None, "characters": characters}
    return {"audio": audio or request["audio"], "characters": ()}
