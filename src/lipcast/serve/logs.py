"""Log records of the server: one JSON document a line, with the session that it is about."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from lipcast.env import logger

_log = logger("serve")


def log_event(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write what happened; `session` among the fields is a session's label."""
    _log.log(level, event, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Formats records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        time_s = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, Any] = {
            "time": f"{time_s}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def write_logs() -> None:
    """Write the records of the server on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    _log.handlers, _log.propagate = [handler], False
    _log.setLevel(logging.INFO)
