"""The images: what they copy exists, who they run as, and a health check that tells ready from not."""

from __future__ import annotations

import http.server
import importlib.util
import re
import threading
import tomllib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from lipcast.cli.app import make_app
from lipcast.cli.main import main

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def load_compose(name: str) -> Any:
    """Return a compose file; its tags for merging are read as plain values."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    Loader.add_constructor("!reset", lambda loader, node: loader.construct_scalar(node))
    return yaml.load((ROOT / "docker" / name).read_text(), Loader)


def load_health_check() -> Any:
    loader = SourceFileLoader("healthcheck", str(ROOT / "docker/healthcheck.py"))
    spec = importlib.util.spec_from_loader("healthcheck", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(params=[(200, "secret", True), (503, "secret", False), (401, "", True)])
def answer(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, bool]]:
    """A server's address, a token, and whether its answer means that it is healthy."""
    status, token, is_healthy = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers.get("Authorization") == (f"Bearer {token}" if token else None)
            self.send_response(status if self.path == "/readyz" else 500)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", token, is_healthy
        server.shutdown()
        thread.join()


def test_the_health_check_tells_ready_from_not(answer: tuple[str, str, bool]) -> None:
    address, token, is_healthy = answer
    assert load_health_check().is_ready(address, token) is is_healthy


def test_nobody_listening_is_unhealthy() -> None:
    assert not load_health_check().is_ready("http://127.0.0.1:9", "")


def test_what_the_image_copies_is_in_its_context() -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert all((ROOT / name).exists() for name in kept)
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+) ", DOCKERFILE, re.MULTILINE)
    assert set(copied) - {"."} <= kept
    assert {"src", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= kept


def test_the_extras_of_the_image_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)", DOCKERFILE, re.MULTILINE)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_the_server_runs_without_rights() -> None:
    base = DOCKERFILE.split(" AS base")[1]
    assert re.search(r"^USER 10001$", base, re.MULTILINE)
    for line in ("HEALTHCHECK ", "VOLUME /data", 'ENTRYPOINT ["lipcast"]'):
        assert line in base
    service = load_compose("compose.yaml")["services"]["lipcast"]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_command_of_compose_is_one_of_lipcast() -> None:
    command = load_compose("compose.yaml")["services"]["lipcast"]["command"]
    app = make_app()
    chosen = app.get_command(click.Context(app), command[0])
    assert chosen is not None
    known = {name for option in chosen.params for name in option.opts}
    assert {part.partition("=")[0] for part in command[1:]} <= known


def test_the_images_of_compose_are_targets_of_the_dockerfile() -> None:
    for name in ("compose.yaml", "compose.cpu.yaml"):
        service = load_compose(name)["services"]["lipcast"]
        target = service["build"]["target"]
        assert service["image"] == f"lipcast:{target}"
        assert re.search(rf" AS {target}$", DOCKERFILE, re.MULTILINE)


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipcast.serve import run

    found: list[Any] = []

    class NoServer:
        url = "http://nowhere"

        def __init__(self, hub: Any) -> None:
            found.append(hub.settings)

        def run(self) -> None:
            """Serve nothing."""

    monkeypatch.setattr(run, "RunningServer", NoServer)
    monkeypatch.setenv("LIPCAST_TOKEN", "of the environment")
    monkeypatch.setenv("LIPCAST_TURN_PASSWORD", "of the relay")
    relay = ["--turn_url", "turn:localhost:3478", "--turn_user", "me"]
    assert main(["serve", "--quiet", *relay]) == 0
    assert (
        main(["serve", "--quiet", *relay, "--token", "given by flag", "--turn_password", "too"])
        == 0
    )
    assert [(s.token, s.turn_password) for s in found] == [
        ("of the environment", "of the relay"),
        ("given by flag", "too"),
    ]
