"""What a model's server answers wrongly with, classed by cause: status, `error.type`, `error.code` and its message.

Measured on LiteLLM's proxy, whose types and prefixes these are, and true of the providers themselves. One table for
all: an error may come as a status, or in the middle of a stream that began with 200.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from activities.errors import (
    ContextOverflowError,
    ModelBudgetError,
    ModelFault,
    ModelKeyRefusedError,
    ModelMissingError,
    ModelQuotaError,
    ModelRefusedError,
    ModelThrottledError,
    ModelUnavailableError,
)

LONGEST_RETRY_AFTER_S = 60.0
"""Whatever the server says: a task that waits for longer had better ask again."""

_OVERFLOW = re.compile(
    r"ContextWindowExceededError|context_length_exceeded|exceed_context_size|maximum context length"
    r"|context window|prompt is too long|exceeds the available context size",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|insufficient (credits|balance)", re.IGNORECASE)
_BUDGET = re.compile(r"budget_exceeded|Budget has been exceeded|ExceededBudget", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"Invalid model name passed|model_not_found|does not exist", re.IGNORECASE)

_SECRETS = re.compile(
    r"\bsk-[\w.\-*…]+|\b[0-9a-f]{32,}\b|(?i:bearer\s+)\S+"  # keys and their hashes
    r"|\bhttps?://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"  # and where our own servers are
)
_WRAPPING = re.compile(r"^(?:(?:litellm\.)?\w+(?:Error|Exception|Timeout)(?::| -) *)+")
_WORD = re.compile(r"[\w.\-]{1,64}")
_DETAIL_LIMIT = 300
_WINDOW = 16
_STRIDE = 8
"""Any run of 24 characters holds a window of 16 that begins at a multiple of 8."""
_SHORTEST_GIVEAWAY = 4


@dataclass(frozen=True)
class ServerError:
    """An error as the server told it. `status` None: in the middle of a stream, without a number."""

    status: int | None
    type: str = ""
    code: str = ""
    message: str = ""
    retry_after: float | None = None


def read_error(status: int | None, body: object, headers: Mapping[str, str] | None = None) -> ServerError:
    """The error in an answer's JSON, whatever of OpenAI's shape it has. `headers`: names in lower case."""
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    fields: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
    code = _text(fields.get("code"))
    if status is None and code.isdecimal():
        status = int(code)
    return ServerError(
        status=status,
        type=_text(fields.get("type")),
        code=code,
        message=_text(fields.get("message")),
        retry_after=None if headers is None else read_retry_after(headers),
    )


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until another try is worth it, at most a minute: from a number or a date."""
    value = headers.get("retry-after") or headers.get("llm_provider-retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S) if seconds == seconds else None  # noqa: PLR0124 -- not NaN


def to_fault(error: ServerError, *, model: str, private: Iterable[str] = ()) -> ModelFault:
    """The fault for the owner. `private`: texts no piece of which may show in it."""
    kind = _kind(error)
    if kind is ModelThrottledError:
        return kind(f"The model {model} is asked too often at the moment.", retry_after=error.retry_after)
    if kind is ModelKeyRefusedError and error.message.startswith("litellm."):
        return kind(f"The provider of the model {model} refuses the proxy's own key; its operator must see to it.")
    if kind in _SENTENCES:
        return kind(_SENTENCES[kind].format(model=model))
    detail = _detail(error, private)
    if kind is ModelRefusedError:
        return kind(f"The model's server refuses the request{detail}")
    return ModelUnavailableError(f"The model's server failed{detail}", retry_after=error.retry_after)


_SENTENCES: Mapping[type[ModelFault], str] = {
    ModelKeyRefusedError: "The model's server refuses the key: it is revoked, unknown, or not for the model {model}.",
    ModelMissingError: "The model's server has no model {model}.",
    ModelBudgetError: "The key's budget at the model's server is spent.",
    ModelQuotaError: "The account at the provider of the model {model} has nothing left; its operator must see to it.",
    ContextOverflowError: "The conversation is longer than the model {model} takes.",
}
_KINDS: Mapping[int, type[ModelFault]] = {
    401: ModelKeyRefusedError,
    403: ModelKeyRefusedError,
    404: ModelMissingError,
    408: ModelUnavailableError,
    409: ModelUnavailableError,
    425: ModelUnavailableError,
    429: ModelThrottledError,
}
_FIRST_SERVER_ERROR = 500


def _kind(error: ServerError) -> type[ModelFault]:
    status = error.status or _FIRST_SERVER_ERROR
    said = f"{error.type} {error.code} {error.message}"
    if _BUDGET.search(f"{error.type} {error.message[:200]}"):
        return ModelBudgetError
    if _QUOTA.search(said) and status in {402, 403, 429}:
        return ModelQuotaError
    if _OVERFLOW.search(said) and (status < _FIRST_SERVER_ERROR or error.status is None):
        return ContextOverflowError
    if status == 400 and _UNKNOWN_MODEL.search(said):  # noqa: PLR2004 -- bad request
        return ModelMissingError
    if status == 402:  # noqa: PLR2004 -- payment required
        return ModelQuotaError
    return _KINDS.get(status, ModelUnavailableError if status >= _FIRST_SERVER_ERROR else ModelRefusedError)


def _detail(error: ServerError, private: Iterable[str]) -> str:
    """` (400, invalid_request_error): what it said`, as far as it gives nothing away."""
    marks = [str(error.status or ""), *(word for word in (error.type, error.code) if _WORD.fullmatch(word))]
    shown = ", ".join(dict.fromkeys(mark for mark in marks if mark not in {"", "None"}))
    first_line = error.message.strip().split("\n", 1)[0]
    said = _SECRETS.sub("…", _WRAPPING.sub("", first_line))[:_DETAIL_LIMIT].strip()
    head = f" ({shown})" if shown else ""
    return f"{head}: {said}" if said and not _gives_away(said, private) else f"{head}."


def _gives_away(said: str, private: Iterable[str]) -> bool:
    """Whether a private text, or 24 characters in a row of one, stand in what was said."""
    windows = [said[start : start + _WINDOW] for start in range(0, max(len(said) - _WINDOW, 0) + 1, _STRIDE)]
    return any(
        (len(text.strip()) >= _SHORTEST_GIVEAWAY and text.strip() in said) or any(part in text for part in windows)
        for text in private
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
