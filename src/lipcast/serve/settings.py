"""What one server is told: where it listens, who may come in, and how much of everything it takes."""

from __future__ import annotations

import ipaddress
import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from lipcast.errors import UsageError
from lipcast.media.signing import SigningKey

MAX_PROMPT = 2000
"""Characters."""

_HOST = r"[\w.-]+(:\d{1,5})?"
_STUN = re.compile(f"stun:{_HOST}")
_TURN = re.compile(rf"(turn:{_HOST}(\?transport=(udp|tcp))?|turns:{_HOST}(\?transport=tcp)?)")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Defaults of `lipcast serve`."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    """Asked of every request; made up where the host is not loopback or there is a TURN password."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allowed_origins: tuple[str, ...] = ()
    """Origins of other pages that may connect, such as "https://example.org"."""
    max_sessions: int = 4
    max_upload_bytes: int = 10 * 2**20
    max_pixels: int = 25_000_000
    max_session_s: float = 3600.0
    idle_s: float = 300.0
    """A session without sound or a message is closed after so long."""
    grace_s: float = 20.0
    """How long a session waits for its client to connect, at first and again."""
    stall_s: float = 10.0
    """How long a client may read nothing before it is disconnected."""
    marked: bool = True
    """Whether streams say that they are synthetic."""
    signing: SigningKey | None = None
    """Signs the videos; streams are not signed."""
    prepare: bool = True
    """Whether a session is opened ahead for the portrait that was chosen last."""
    ice_servers: tuple[str, ...] = ()
    """STUN servers for WebRTC, such as "stun:stun.example.org:3478"."""
    turn_url: str | None = None
    """TURN server that relays WebRTC, such as "turn:turn.example.org:3478?transport=tcp"."""
    turn_user: str | None = None
    turn_password: str | None = field(default=None, repr=False)
    workspace: Path | None = None
    """Folder of the video jobs; None: in the user's cache."""
    max_videos: int = 20
    """Video jobs that wait."""
    max_video_s: float = 600.0
    """Length of the voice of a video."""
    max_video_pixels: int = 1280 * 720
    """Height times width of a video."""
    max_voice_bytes: int = 100 * 2**20
    """Bytes of an uploaded voice."""
    keep_videos_s: float = 86_400.0
    """A video is deleted so long after its end."""
    segment_s: float = 20.0
    """Length of the segments that videos are made in: what a crash costs at most."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"port: expected 0 to 65535, got {self.port}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("TLS needs a certificate and its key: give --tls_cert and --tls_key")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise UsageError(f"{path}: no such file; give a PEM file")
        if self.token is not None and len(self.token) < 8:
            raise UsageError("token: expected at least 8 characters, which others cannot guess")
        self._check_ice()
        for name in ("max_sessions", "max_upload_bytes", "max_pixels", "max_session_s", "idle_s",
                     "grace_s", "stall_s", "max_videos", "max_video_s", "max_video_pixels",
                     "max_voice_bytes", "keep_videos_s", "segment_s"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}: expected more than 0, got {getattr(self, name)}")

    def _check_ice(self) -> None:
        for url in self.ice_servers:
            if not _STUN.fullmatch(url):
                raise UsageError(f"ice_server: expected stun:HOST:PORT, got {url!r}")
        if self.turn_url is not None and not _TURN.fullmatch(self.turn_url):
            raise UsageError(
                f"turn_url: expected turn:HOST:PORT or turns:HOST:PORT, got {self.turn_url!r}"
            )
        given = [name for name in (self.turn_url, self.turn_user, self.turn_password) if name]
        if given and len(given) < 3:
            raise UsageError("TURN needs all of --turn_url, --turn_user and --turn_password")

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_token(self) -> ServeSettings:
        """Return the settings with a token where one is needed."""
        if self.token is not None or (self.is_loopback and self.turn_password is None):
            return self
        return replace(self, token=secrets.token_urlsafe(24))

    def url(self, port: int) -> str:
        """Return the address to open, with the token."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host
        host = f"[{host}]" if ":" in host else host
        scheme = "http" if self.tls_cert is None else "https"
        query = "" if self.token is None else f"?token={self.token}"
        return f"{scheme}://{host}:{port}/{query}"
