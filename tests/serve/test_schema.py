"""Every route: what its description allows and forbids, and what it says without the token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from in_process import BASE, SOCKETS, Server
from schemathesis import GenerationMode
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import WebSocketDenialResponse

from profiles import examples

TOKEN = "a-token-of-the-test"
BOUNDS = settings(
    max_examples=examples(10),
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace = tmp_path_factory.mktemp("videos")
    with Server(workspace=workspace, max_sessions=1, max_videos=2) as running:
        yield running


def send(server: Server, case: Any) -> Any:
    """Send what was drawn, as `requests` would encode it; a header may have any characters."""
    how = case.as_transport_kwargs(base_url=BASE)
    sent = requests.Request(
        **{key: value for key, value in how.items() if key != "headers"}
    ).prepare()
    headers = {**how["headers"], **sent.headers}
    assert sent.method is not None and sent.url is not None
    return server.client.request(
        sent.method, sent.url, content=sent.body,
        headers={name: str(value).encode() for name, value in headers.items()},
    )  # fmt: skip


def drawn(operation: Any) -> list[Any]:
    """Requests for one route, allowed ones and wrong ones; the same in every run."""
    cases: list[Any] = []

    def keep(case: Any) -> None:
        cases.append(case)

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        with suppress(Unsatisfiable):  # of some, nothing that is wrong can be drawn
            BOUNDS(given(operation.as_strategy(generation_mode=mode))(keep))()
    assert cases
    return cases


@pytest.mark.slow
def test_no_request_is_answered_with_what_is_not_described(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    operations = [
        found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    answers: dict[str, set[int]] = {}
    for operation in operations:
        described = document["paths"][operation.path][operation.method.lower()]["responses"]
        seen = answers.setdefault(f"{operation.method.upper()} {operation.path}", set())
        for case in drawn(operation):
            answer = send(server, case)
            seen.add(answer.status_code)
            assert str(answer.status_code) in {*described, "404", "405"}, answer.text
            if answer.status_code >= 400 and answer.status_code != 416:
                assert answer.json()["error"]["message"], answer.text
    assert len(answers) >= 13 and {400, 422} & answers["POST /v1/videos"], answers
    assert server.client.get("/healthz").status_code == 200


def test_the_description_is_complete(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description") and operation["operationId"], (method, path)
            assert method not in {"post", "put"} or "requestBody" in operation, path
    assert document["components"]["schemas"]["Video"]["examples"][0]["object"] == "video"
    form = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(form["schema"]["example"]) <= set(form["schema"]["properties"])


def test_off_loopback_every_route_needs_the_token(server: Server) -> None:
    with Server(host="0.0.0.0", token=TOKEN) as guarded:
        routes = guarded.client.app.routes  # type: ignore[attr-defined]
        paths = {
            re.sub(r"{[^}]*}", "x", route.path) for route in routes if isinstance(route, Route)
        }
        assert len(paths) >= 13 and {"/", "/metrics", "/v1/videos", "/v1/videos/x/content"} <= paths
        wrong = {"authorization": f"Bearer {TOKEN}x"}
        for path, method, headers in product(sorted(paths), METHODS, ({}, wrong)):
            answer = guarded.client.request(method, path, headers=headers, follow_redirects=False)
            assert answer.status_code == 401, (method, path)
        sockets = [route.path for route in routes if isinstance(route, WebSocketRoute)]
        assert sockets
        for path in sockets:
            address = SOCKETS + re.sub(r"{[^}]*}", "x", path)
            with pytest.raises(WebSocketDenialResponse) as refused:
                guarded.client.websocket_connect(address).__enter__()
            assert refused.value.status_code == 401
