"""Who may come in: the token, the host name and the origin of every request and WebSocket.

Input: ASGI scopes. Output: the request is passed on, or answered with 401 or 403 and a sentence. Without a
token (loopback only) the host must be a name of this machine, so that no page of the internet can reach the
server under a name of its own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import SplitResult, parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lipcast.serve.problems import problem_document
from lipcast.serve.settings import ServeSettings

COOKIE = "lipcast_token"
VIDEOS_PATH = "/v1/videos"
_LOCAL_NAMES = {"127.0.0.1", "localhost", "::1"}
HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Gate:
    """The middleware around everything."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope)
        if refusal is None:
            most = self._settings.max_upload_bytes
            if scope["path"].rstrip("/") == VIDEOS_PATH:
                most += self._settings.max_voice_bytes
            is_http = scope["type"] == "http"
            await self._app(scope, _bounded(receive, most) if is_http else receive, send)
        else:
            await _refuse(scope, receive, send, *refusal)

    def _refusal(self, headers: Headers, scope: Scope) -> tuple[int, str] | None:
        token = self._settings.token
        if token is not None and not secrets.compare_digest(
            given_token(headers, scope).encode(), token.encode()
        ):
            return 401, "a token is needed: open the address that the server printed at its start"
        host = _split(f"//{headers.get('host', '')}").hostname or ""
        if token is None and host not in _LOCAL_NAMES:
            return (
                403,
                f"the host name {host!r} is not of this machine; start the server with --token",
            )
        origin = headers.get("origin")
        if origin is not None and not self._knows(origin, headers):
            return (
                403,
                f"pages of {origin} may not connect; allow them with --allow_origin {origin}",
            )
        return None

    def _knows(self, origin: str, headers: Headers) -> bool:
        is_own = _split(origin).netloc.lower() == headers.get("host", "").lower() != ""
        return is_own or origin in self._settings.allowed_origins


def _split(address: str) -> SplitResult:
    """Return the parts of an address; empty ones where it is none, such as "//[::1"."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def given_token(headers: Headers, scope: Scope) -> str:
    """Return the token that came with a request: as a bearer, as a cookie, or in the address."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    if "token" in query:
        return str(query["token"][0])
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if cookie is None else str(cookie.value)


def _bounded(receive: Receive, most_bytes: int) -> Receive:
    """Return a way to receive bodies that raises HTTPException for one of more bytes."""
    received = 0

    async def receive_part() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most_bytes:
            raise HTTPException(413, f"expected at most {most_bytes / 2**20:.0f} MiB; send less")
        return message

    return receive_part


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, sentence: str) -> None:
    """Answer with a status, also a WebSocket's handshake."""
    body = json.dumps(problem_document(status, sentence)).encode()
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})  # which is answered with 403
            return
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
