"""Runs the server until it is told to stop; open sessions are told, and given some seconds."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from lipcast.errors import UsageError
from lipcast.serve.app import make_app
from lipcast.serve.hub import Hub
from lipcast.serve.logs import log_event

_MAX_MESSAGE = 2**20
"""Bytes of one message of a WebSocket: ten seconds of sound at 48 kHz."""
_MAX_CONNECTIONS = 256
_GRACEFUL_S = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """Ends with the signals of its own, which are not raised again, and tells open sessions before."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread hears of signals
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log_event("shutting down", sessions=self._hub.num_sessions)
        for hosted in self._hub.sessions():
            if hosted.leave is not None:
                hosted.leave("shutdown")
        await asyncio.sleep(0.1)  # the connections say why
        await super().shutdown(sockets)


class RunningServer:
    """A server whose port is open. `run` serves until `stop`, SIGINT or SIGTERM."""

    def __init__(self, hub: Hub) -> None:
        """Open the port. Raises UsageError where the address cannot be used."""
        settings = hub.settings
        self._hub, self._listener = hub, _listen(settings.host, settings.port)
        self.url = settings.url(self._listener.getsockname()[1])
        """The address to open, with the token."""
        config = uvicorn.Config(
            make_app(hub),
            log_config=None,
            access_log=False,
            limit_concurrency=_MAX_CONNECTIONS,
            ws_max_size=_MAX_MESSAGE,
            ws_ping_interval=5,
            ws_ping_timeout=10,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=_GRACEFUL_S,
            server_header=False,
        )
        self._server = _Server(config, hub)
        hub.on_failure = self.stop

    def run(self) -> None:
        """Serve; raises the error of loading the model."""
        self._server.run(sockets=[self._listener])
        if self._hub.failure is not None:
            raise self._hub.failure

    def stop(self) -> None:
        """End `run`, from any thread."""
        self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # who comes early waits
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; choose another --host or --port"
        ) from error
    return listener
