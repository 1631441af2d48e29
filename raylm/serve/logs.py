"""Structured logs: one JSON object a line, on standard error, from where Ray collects it."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

log = logging.getLogger("raylm.serve")


def event(name: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Log something that happened; an exception that is being handled goes with errors."""
    log.log(level, name, extra={"facts": facts}, exc_info=level >= logging.ERROR and sys.exc_info()[0] is not None)


def to_stderr() -> None:
    """Write events; called once in every replica."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        said = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        said |= getattr(record, "facts", {})
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)
