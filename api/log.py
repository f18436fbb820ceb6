"""Logging for a process: one line an event, JSON or for a terminal, without secrets.

Nothing logs a header, a body or a query string. Should a library do so all the same (uvicorn names a WebSocket's
query string), or an exception carry one in its text, the last step before printing takes the secrets out.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

REDACTED = "[redacted]"

_SECRET_NAME = re.compile(
    r"password|passwd|secret|token|authorization|cookie|api_?key|ticket|credential", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"stu_[A-Za-z0-9_-]{16,}"  # API keys
    r"|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"  # JWTs
    r"|(?<=Bearer )\S+"
    r"|(?<=ticket=)[^&\s\"']+|(?<=token=)[^&\s\"']+"  # query strings
    r"|(?<=://)[^/\s@:]+:[^/\s@]+(?=@)",  # user and password in a URL
)


def configure_logging(*, json_lines: bool = True, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging for the whole process; call it once, at its start."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # its lines have query strings; ours says the same without


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out values under secret names, and secrets within texts; the last step before an event is printed."""
    return {name: _redacted(name, value) for name, value in event.items()}


def _redacted(name: str, value: Any) -> Any:  # noqa: ANN401 -- whatever somebody logs
    if isinstance(value, str):
        return REDACTED if _SECRET_NAME.search(name) else _SECRET_TEXT.sub(REDACTED, value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {key: _redacted(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(name, inner) for inner in value]
    return value
