"""A server with the embedded model and short segments; takes a workspace, prints its address."""

from __future__ import annotations

import sys
from pathlib import Path

import lipcast
from lipcast.config.generate_options import GenerateOptions
from lipcast.serve.hub import Hub
from lipcast.serve.run import RunningServer
from lipcast.serve.settings import ServeSettings

if __name__ == "__main__":
    settings = ServeSettings(port=0, workspace=Path(sys.argv[1]), segment_s=0.96)
    options = GenerateOptions(size="64*64", sample_steps=1)
    hub = Hub(
        lambda: lipcast.load("tiny", device="cpu", precision="fp32"), settings, options=options
    )
    server = RunningServer(hub)
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    server.run()
