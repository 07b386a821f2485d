"""The routes of WebRTC: offers are answered, and clients are told the STUN and TURN servers.

The package behind it is optional; without it the routes say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from lipcast.serve.hub import Hosted, Hub
from lipcast.serve.problems import responses

if TYPE_CHECKING:
    from lipcast.serve.rtc_connection import RtcPeers

_MAX_SDP = 2**16


class Offer(BaseModel):
    """An offer of WebRTC; what browsers call an RTCSessionDescription."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["offer"]
    sdp: str = Field(max_length=_MAX_SDP)


def make_peers(hub: Hub) -> RtcPeers | None:
    """Return what answers the offers of a server; None where its package is not installed."""
    try:
        from lipcast.serve.rtc_connection import RtcPeers
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "aiortc":
            raise
        return None
    return RtcPeers(hub)


def add_webrtc(app: FastAPI, hub: Hub, peers: RtcPeers | None) -> None:
    """Add the routes; `peers` is what `make_peers` returned."""
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

    @app.get("/api/sessions/{key}/webrtc", responses=responses(404))
    async def servers(key: str) -> dict[str, Any]:
        """Return the STUN and TURN servers that a session's client may use."""
        answering, _ = found(key)
        return {"ice_servers": answering.ice_servers}

    @app.post("/api/sessions/{key}/webrtc", responses=responses(400, 404, 413, 422))
    async def answer(key: str, offer: Offer) -> dict[str, str]:
        """Answer an offer; the connection that comes of it gets the session."""
        answering, hosted = found(key)
        return {"type": "answer", "sdp": await answering.answer(hosted, offer.sdp)}
