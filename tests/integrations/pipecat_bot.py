"""The example of Pipecat, served in a thread with a model that computes nothing."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import uvicorn

from fake_live import SIDE, FakeModel
from programs import load_program

FOLDER = Path(__file__).parents[2] / "integrations/pipecat"


def load_bot() -> Any:
    """Return the program of the example as a module."""
    return load_program(FOLDER / "bot.py")


class ServedBot:
    """Serves the page and the bot until it is left."""

    def __init__(self) -> None:
        example = load_bot()
        self.model = FakeModel()
        self.bot = example.Bot(self.model, example.EXAMPLE, (SIDE, SIDE), example.parse([]))
        config = uvicorn.Config(
            example.make_app(self.bot), log_level="warning", timeout_graceful_shutdown=5
        )
        self._server, self._socket = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    def say(self, *frames: Any) -> None:
        """Hand frames to the last conversation."""
        queued = self.bot.workers[-1].queue_frames(list(frames))
        asyncio.run_coroutine_threadsafe(queued, self._loop).result(60)

    def __enter__(self) -> ServedBot:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.should_exit = True
        self._thread.join(120)
        assert not self._thread.is_alive()
