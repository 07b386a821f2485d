"""Report the end of a job to a web server: one POST of JSON, which may fail without harm."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from lipcast.errors import UsageError

_TIMEOUT_S = 10


def check_url(url: str) -> str:
    """Return the URL; raises UsageError where nothing can be posted to it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--webhook: expected http://host/... or https://host/..., got {url!r}")
    return url


def post(url: str, document: Mapping[str, Any]) -> str:
    """Send a document; returns what went wrong, or an empty text."""
    data = json.dumps(document, default=str).encode()
    request = urllib.request.Request(
        url, data=data, method="POST", headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return ""
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        return f"webhook {url}: {error}"
