"""Logging for a process: one line an event, JSON or for a terminal, without secrets.

Our own lines (structlog) are rendered and written as they are made: through the standard library's logging each costs
twice the CPU, and every request writes one. What libraries log comes from there and gets the same look.

Nothing logs a header, a body or a query string. Should a library do so all the same (uvicorn names a WebSocket's
query string), or an exception carry one in its text, the last step before printing takes the secrets out.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from functools import lru_cache
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
    output = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer(colors=False)
    )
    last: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, redact, renderer]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=_NamedLoggers(output),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # its lines have query strings; ours says the same without


class _NamedLogger(structlog.WriteLogger):
    """Writes lines; has the name that `add_logger_name` asks for."""

    def __init__(self, name: str, output: TextIO) -> None:
        super().__init__(output)
        self.name = name


class _NamedLoggers:
    """Makes each logger once, by its name."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._made: dict[str, _NamedLogger] = {}

    def __call__(self, name: str = "studio") -> _NamedLogger:
        """The logger of this name."""
        if name not in self._made:
            self._made[name] = _NamedLogger(name, self._output)
        return self._made[name]


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out values under secret names, and secrets within texts; the last step before an event is printed."""
    return {name: _redacted(name, value) for name, value in event.items()}


def _redacted(name: str, value: Any) -> Any:  # noqa: ANN401 -- whatever somebody logs
    if isinstance(value, str):
        return REDACTED if _is_secret(name) else _SECRET_TEXT.sub(REDACTED, value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {key: _redacted(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(name, inner) for inner in value]
    return value


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None
