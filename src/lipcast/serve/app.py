"""The routes of the server: the page, portraits, sessions, their WebSockets, health and metrics.

Input: a hub. Output: an ASGI application. Errors are JSON with a sentence, as `problems` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from mimetypes import guess_type
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

import lipcast
from lipcast.serve.connection import Connection
from lipcast.serve.hub import Hub
from lipcast.serve.problems import add_problems, problem, responses
from lipcast.serve.rtc_api import add_webrtc, make_peers
from lipcast.serve.security import COOKIE, HEADERS, Gate
from lipcast.serve.settings import MAX_PROMPT
from lipcast.serve.spare import Wanted
from lipcast.serve.video_api import add_videos

_NO_SESSION = 4404
_PICTURE = {"type": "string", "format": "binary"}


class SessionRequest(BaseModel):
    """What a session begins with."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"portrait": "portrait_0.png", "prompt": "a calm man"}]},
    )

    portrait: str = Field(max_length=100)
    prompt: str = Field(default="", max_length=MAX_PROMPT)
    seed: int | None = Field(default=None, ge=0, le=2**31)


def make_app(hub: Hub) -> FastAPI:
    """Return the application; the hub is started and stopped with it."""

    peers = make_peers(hub)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        yield
        await hub.stop()
        if peers is not None:
            await peers.stop()

    app = FastAPI(
        title="Lipcast",
        version=lipcast.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Gate, settings=hub.settings)
    add_problems(app)
    _add_page(app, hub)
    _add_health(app, hub)
    _add_sessions(app, hub)
    add_webrtc(app, hub, peers)
    add_videos(app, hub.videos)
    return app


def _add_page(app: FastAPI, hub: Hub) -> None:
    folder = files("lipcast.serve") / "page"
    page = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        token = request.query_params.get("token")
        if token is None:
            return Response(page["index.html"], media_type="text/html", headers=HEADERS)
        answer = RedirectResponse(".", 303, headers=HEADERS)  # so that the token leaves the address
        is_secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=is_secure)
        return answer

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in page:
            raise HTTPException(404, "no such file")
        return Response(page[name], media_type=guess_type(name)[0], headers=HEADERS)

    @app.get(
        "/api/examples/{name}",
        response_class=Response,
        responses={**responses(404), 200: {"content": {"image/png": {}, "audio/mp4": {}}}},
    )
    async def example(name: str) -> Response:
        """Return an included portrait, or the included voice."""
        content = hub.portraits.examples.get(name)
        if content is None:
            raise HTTPException(404, "no such example")
        kind = "audio/mp4" if name.endswith(".m4a") else "image/png"
        return Response(content, media_type=kind, headers=HEADERS)


def _add_health(app: FastAPI, hub: Hub) -> None:
    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Return that the server runs."""
        return {"status": "ok"}

    @app.get("/readyz", responses=responses(503))
    async def ready() -> Response:
        """Return whether sessions can be opened."""
        if hub.is_ready:
            return JSONResponse({"status": "ready"})
        return problem(503, "the model is still being loaded")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' format."""
        return Response(hub.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/api/info")
    async def info() -> dict[str, Any]:
        """Return what the page shows: version, readiness, limits, examples."""
        settings = hub.settings
        return {
            "version": lipcast.__version__,
            "ready": hub.is_ready,
            "sessions": hub.num_sessions,
            "examples": hub.portraits.example_names,
            "voice": "voice.m4a",
            "speech": hub.speech.described(),
            "webrtc": app.state.has_webrtc,
            "limits": {
                "sessions": settings.max_sessions,
                "upload_bytes": settings.max_upload_bytes,
                "pixels": settings.max_pixels,
                "session_s": settings.max_session_s,
                "idle_s": settings.idle_s,
                "grace_s": settings.grace_s,
            },
        }


def _add_sessions(app: FastAPI, hub: Hub) -> None:
    @app.post(
        "/api/portraits",
        status_code=201,
        responses=responses(400, 413),
        openapi_extra={
            "requestBody": {"required": True, "content": {"image/*": {"schema": _PICTURE}}}
        },
    )
    async def upload(request: Request) -> dict[str, Any]:
        """Keep the picture that is the body of the request, for sessions to begin with."""
        name, image = await asyncio.to_thread(hub.portraits.add, await request.body())
        return {"portrait": name, "width": image.width, "height": image.height}

    @app.post("/api/sessions", status_code=201, responses=responses(400, 413, 422, 503, 507))
    async def open_session(wanted: SessionRequest) -> dict[str, Any]:
        """Open a session. It waits for its WebSocket for the grace time."""
        hosted = await hub.open(portrait=wanted.portrait, prompt=wanted.prompt, seed=wanted.seed)
        return {"session": hosted.key, "label": hosted.label, "grace_s": hub.settings.grace_s}

    @app.post("/api/prepare", status_code=202, responses=responses(400, 413, 422))
    async def prepare(wanted: SessionRequest) -> dict[str, bool]:
        """Open such a session ahead, so that it begins at once; not while others are open."""
        return {"preparing": hub.prepare(Wanted(wanted.portrait, wanted.prompt, wanted.seed))}

    @app.delete("/api/sessions/{key}", status_code=204, responses=responses(404))
    async def close_session(key: str) -> None:
        """End a session."""
        hosted = hub.find(key)
        if hosted is None:
            raise HTTPException(404, "no such session; it may have ended")
        await hub.close(hosted, "closed")

    @app.websocket("/api/sessions/{key}/stream")
    async def stream(socket: WebSocket, key: str) -> None:
        hosted = hub.find(key)
        if hosted is None:
            await socket.accept()
            await socket.close(_NO_SESSION, "no such session; it may have ended")
            return
        await Connection(hub, hosted, socket).run()
