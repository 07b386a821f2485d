#!/usr/bin/env python3
"""Ends with 0 where the server of this container is ready: lipcast-healthcheck [ADDRESS]

A server whose token this process does not know answers 401, which shows that it listens.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request


def is_ready(address: str, token: str) -> bool:
    """Ask the server whether it can take a session."""
    asked = urllib.request.Request(f"{address}/readyz")
    if token:
        asked.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(asked, timeout=4):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 401
    except OSError:
        return False


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    sys.exit(0 if is_ready(address, os.environ.get("LIPCAST_TOKEN", "")) else 1)
