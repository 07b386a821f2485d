"""Which FFmpeg libraries are here, and whether they can write what Lipcast writes."""

from __future__ import annotations

import av

NEEDED_ENCODERS = ("libx264", "aac")


def ffmpeg_versions() -> dict[str, str]:
    """Return {library: version} of what PyAV was built with, "av" itself included."""
    versions = {name: ".".join(map(str, parts)) for name, parts in av.library_versions.items()}
    return {"av": av.__version__, **versions}


def missing_encoders() -> tuple[str, ...]:
    """Return the needed encoders that this FFmpeg does not have."""
    return tuple(name for name in NEEDED_ENCODERS if name not in av.codecs_available)
