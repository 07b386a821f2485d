"""Requests to a server that speaks OpenAI's HTTP interface.

Input: a base URL, such as http://127.0.0.1:11434/v1, and perhaps a key. Output: answers while they come.
Whatever goes wrong is a SpeechError with what to do. Nothing of an answer is kept beyond a bound.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2

from lipcast.env import secret
from lipcast.errors import SpeechError, UsageError

EventSource = httpx2.EventSource
"""Events of an answer, and its response."""
CONNECT_S, READ_S = 10.0, 60.0
"""How long a server may take to be reached, and to send something."""
_MAX_DOCUMENT = 2**20
_MAX_REASON = 200
_TAG = re.compile(r"<(style|script)\b.*?</\1>|<[^<>]*>", re.S | re.I)
"""Markup of an error page."""


def is_url(text: str) -> bool:
    """Return whether a text names a server."""
    return text.startswith(("http://", "https://"))


class Service:
    """One server, which one flag names. `close` ends its connections."""

    def __init__(self, flag: str, url: str, *, key: str, read_s: float = READ_S) -> None:
        """`key` names the environment variable that holds the server's key. Raises UsageError."""
        try:
            parts = urlsplit(url)
            httpx2.URL(url)
            has_host = bool(parts.hostname) and " " not in url and (parts.port or 1) > 0
        except (ValueError, httpx2.InvalidURL):
            has_host = False
        if not is_url(url) or not has_host:
            raise UsageError(f"{flag}: expected http://host/v1 or https://host/v1, got {url!r}")
        self.host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._name, self._url = f"{flag} ({self.host})", url
        self._key_name, self._key, self._read_s = key, secret(key), read_s
        self._client: httpx2.AsyncClient | None = None

    @asynccontextmanager
    async def post(self, path: str, **content: Any) -> AsyncIterator[httpx2.Response]:
        """Send a request, `content` as in httpx; yields the answer, whose body has not been read."""
        client = await self._opened()
        with self._explaining():
            async with client.stream("POST", self._address(path), **content) as response:
                await self._check(response)
                yield response

    @asynccontextmanager
    async def events(self, path: str, document: Any) -> AsyncIterator[EventSource]:
        """Send a request that is answered by server-sent events."""
        client, address = await self._opened(), self._address(path)
        with self._explaining():
            async with client.sse(address, method="POST", json=document) as source:
                await self._check(source.response)
                yield source

    async def document(self, response: httpx2.Response) -> Any:
        """Return the JSON of an answer."""
        try:
            return json.loads(await self._start(response, _MAX_DOCUMENT))
        except (ValueError, RecursionError) as error:
            raise self.unusable("no JSON") from error

    def said(self, content: bytes) -> str:
        """Return what an answer says about an error, as one short line without the key."""
        said = reason_of(content.decode("utf-8", "replace"))
        return said.replace(self._key, "…") if self._key else said

    def unusable(self, what: str) -> SpeechError:
        """Return the error of an answer that cannot be used."""
        return SpeechError(
            f"{self._name}: the answer cannot be used ({what}); check that the URL is that of an "
            "OpenAI-compatible server"
        )

    async def close(self) -> None:
        """End the connections; a later request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _opened(self) -> httpx2.AsyncClient:
        if self._client is None:
            made = await asyncio.to_thread(
                self._make_client
            )  # reads certificates, which takes a while
            self._client = self._client or made
            if self._client is not made:
                await made.aclose()
        return self._client

    def _make_client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx2.Timeout(self._read_s, connect=CONNECT_S)
        return httpx2.AsyncClient(headers=headers, timeout=timeout)

    def _address(self, path: str) -> str:
        """Return the address of an endpoint: the URL may be the server's, that of /v1, or the endpoint's."""
        base, question, query = self._url.partition("?")
        base = base.rstrip("/")
        if not base.endswith(path):
            version = "" if urlsplit(base).path else "/v1"
            base = f"{base}{version}/{path}"
        return base + question + query

    async def _check(self, response: httpx2.Response) -> None:
        status = response.status_code
        if status < 300:
            return
        if status in {401, 403}:
            raise SpeechError(
                f"{self._name}: the key was refused ({status}); set {self._key_name} in the environment"
            )
        said = self.said(await self._start(response, 2**16))
        wait = response.headers.get("retry-after", "")
        when = f"in {wait} s" if wait.isdecimal() else "later"
        if status == 429:
            raise SpeechError(
                f"{self._name}: too many requests (429: {said}); the server asks to try again {when}"
            )
        if status >= 500:
            raise SpeechError(
                f"{self._name}: the server failed ({status}: {said}); see its log, or try again {when}"
            )
        if moved := response.headers.get("location"):
            said = f"it points to {moved[:_MAX_REASON]}"
        raise SpeechError(
            f"{self._name}: the request was refused ({status}: {said}); check the URL and the model's name"
        )

    async def _start(self, response: httpx2.Response, most: int) -> bytes:
        content = b""
        async for part in response.aiter_bytes():
            content += part
            if len(content) > most:
                break
        return content[:most]

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectTimeout as error:
            raise self._unreachable(f"no connection within {CONNECT_S:g} s") from error
        except httpx2.TimeoutException as error:
            raise SpeechError(
                f"{self._name}: nothing came for {self._read_s:g} s; the server may be overloaded, try again"
            ) from error
        except httpx2.ConnectError as error:
            raise self._unreachable(str(error) or "no connection") from error
        except httpx2.DecodingError as error:
            raise self.unusable(str(error)) from error
        except httpx2.SSEError as error:
            raise self.unusable("no server-sent events") from error
        except httpx2.TransportError as error:
            raise SpeechError(
                f"{self._name}: the connection broke off ({error or type(error).__name__}); try again"
            ) from error

    def _unreachable(self, why: str) -> SpeechError:
        return SpeechError(
            f"{self._name}: cannot be reached ({why}); check the address, and that the server runs"
        )


def reason_of(text: str) -> str:
    """Return what a server says about an error, as one short line."""
    try:
        text = _message(json.loads(text)) or text
    except (ValueError, RecursionError):
        text = _TAG.sub(" ", text)
    return " ".join(text.split())[:_MAX_REASON] or "no reason given"


def _message(found: Any) -> str:
    """Return the words of an error: OpenAI's, or those of FastAPI and others; an empty text for none."""
    if isinstance(found, list):
        return "; ".join(filter(None, map(_message, found)))
    if not isinstance(found, dict):
        return found if isinstance(found, str) else ""
    names = ("error", "detail", "message", "msg")
    return next(filter(None, (_message(found.get(name)) for name in names)), "")


def is_json(response: httpx2.Response) -> bool:
    """Return whether an answer says that it is JSON."""
    return "application/json" in response.headers.get("content-type", "")
