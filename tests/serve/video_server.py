"""A server whose videos cost little time, in short segments; takes a workspace, prints its address."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from in_process import Drawing

from cheap_worker import Drawn
from fake_live import FakeModel
from lipcast.config.generate_options import GenerateOptions
from lipcast.serve.hub import Hub
from lipcast.serve.run import RunningServer
from lipcast.serve.settings import ServeSettings
from lipcast.serve.video_queue import VideoQueue, made_with


class Slow(Drawing):
    """Takes a while, so that there is a middle."""

    def _blocks(self, first: int, states: list[bytes]) -> Iterator[Drawn]:
        for block in super()._blocks(first, states):
            time.sleep(0.02)
            yield block


if __name__ == "__main__":
    settings = ServeSettings(port=0, workspace=Path(sys.argv[1]), segment_s=0.96)
    options = GenerateOptions(size="64*64")
    videos = VideoQueue(settings, options=options, made_with=made_with(), make_renderer=Slow)
    server = RunningServer(Hub(FakeModel, settings, options=options, videos=videos))
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    server.run()
