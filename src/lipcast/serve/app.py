"""The routes of the server: the page, portraits, sessions, their WebSockets, health and metrics.

Input: a hub. Output: an ASGI application. Errors are JSON with a sentence: {"error": {"code", "message"}}.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from mimetypes import guess_type
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

import lipcast
from lipcast.errors import BusyError, InputError, LipcastError, MemoryBudgetError, UsageError
from lipcast.serve.connection import MAX_PROMPT, Connection
from lipcast.serve.hub import RETRY_S, Hosted, Hub
from lipcast.serve.security import COOKIE, HEADERS, Gate
from lipcast.serve.spare import Wanted

if TYPE_CHECKING:
    from lipcast.serve.rtc_connection import RtcPeers

_NO_SESSION = 4404
_MAX_SDP = 2**16
_STATUS = {BusyError: 503, InputError: 400, UsageError: 400, MemoryBudgetError: 507}


class Offer(BaseModel):
    """An offer of WebRTC; what browsers call an RTCSessionDescription."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["offer"]
    sdp: str = Field(max_length=_MAX_SDP)


class SessionRequest(BaseModel):
    """What a session begins with."""

    model_config = ConfigDict(extra="forbid")

    portrait: str = Field(max_length=100)
    prompt: str = Field(default="", max_length=MAX_PROMPT)
    seed: int | None = Field(default=None, ge=0, le=2**31)


def make_app(hub: Hub) -> FastAPI:
    """Return the application; the hub is started and stopped with it."""

    peers = _peers(hub)

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
    _add_errors(app)
    _add_page(app, hub)
    _add_health(app, hub)
    _add_sessions(app, hub)
    _add_webrtc(app, hub, peers)
    return app


def _peers(hub: Hub) -> RtcPeers | None:
    """Return what answers the offers of WebRTC; None where its package is not installed."""
    try:
        from lipcast.serve.rtc_connection import RtcPeers
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "aiortc":
            raise
        return None
    return RtcPeers(hub)


def _problem(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_S)} if status == 503 else None
    return JSONResponse({"error": {"code": status, "message": message}}, status, headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(LipcastError)
    async def explain(_request: Request, error: LipcastError) -> JSONResponse:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        return _problem(status, str(error))

    @app.exception_handler(HTTPException)
    async def explain_http(_request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def explain_body(_request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"])
        return _problem(422, f"{where}: {found['msg']}")


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

    @app.get("/api/examples/{name}")
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

    @app.get("/readyz")
    async def ready() -> Response:
        """Return whether sessions can be opened."""
        if hub.is_ready:
            return JSONResponse({"status": "ready"})
        return _problem(503, "the model is still being loaded")

    @app.get("/metrics")
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
            "text_to_speech": False,
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
    @app.post("/api/portraits", status_code=201)
    async def upload(request: Request) -> dict[str, Any]:
        """Keep the picture that is the body of the request, for sessions to begin with."""
        name, image = await asyncio.to_thread(hub.portraits.add, await request.body())
        return {"portrait": name, "width": image.width, "height": image.height}

    @app.post("/api/sessions", status_code=201)
    async def open_session(wanted: SessionRequest) -> dict[str, Any]:
        """Open a session. It waits for its WebSocket for the grace time."""
        hosted = await hub.open(portrait=wanted.portrait, prompt=wanted.prompt, seed=wanted.seed)
        return {"session": hosted.key, "label": hosted.label, "grace_s": hub.settings.grace_s}

    @app.post("/api/prepare", status_code=202)
    async def prepare(wanted: SessionRequest) -> dict[str, bool]:
        """Open such a session ahead, so that it begins at once; not while others are open."""
        return {"preparing": hub.prepare(Wanted(wanted.portrait, wanted.prompt, wanted.seed))}

    @app.delete("/api/sessions/{key}", status_code=204)
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


def _add_webrtc(app: FastAPI, hub: Hub, peers: RtcPeers | None) -> None:
    app.state.has_webrtc = peers is not None

    def found(key: str) -> tuple[RtcPeers, Hosted]:
        hosted = hub.find(key)
        if hosted is None:
            raise HTTPException(404, "no such session; it may have ended")
        if peers is None:
            raise HTTPException(
                404, "this server has no WebRTC: pip install 'lipcast[webrtc]' where it runs"
            )
        return peers, hosted

    @app.get("/api/sessions/{key}/webrtc")
    async def servers(key: str) -> dict[str, Any]:
        """Return the STUN and TURN servers that a session's client may use."""
        answering, _ = found(key)
        return {"ice_servers": answering.ice_servers}

    @app.post("/api/sessions/{key}/webrtc")
    async def answer(key: str, offer: Offer) -> dict[str, str]:
        """Answer an offer; the connection that comes of it gets the session."""
        answering, hosted = found(key)
        return {"type": "answer", "sdp": await answering.answer(hosted, offer.sdp)}
