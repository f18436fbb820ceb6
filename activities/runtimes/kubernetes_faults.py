"""What a cluster's refusal means, and what keeps a pod from running, by its cause."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
from kubernetes.aio.config import ConfigException

from activities.errors import (
    NameTakenError,
    NotRunningError,
    ResourcesExhaustedError,
    RuntimeFault,
    RuntimeUnavailableError,
    SpecInvalidError,
)

UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
GONE: Final = 410
_TIMED_OUT: Final = 408
_THROTTLED: Final = 429
_SERVER_ERROR: Final = 500
_EXHAUSTED: Final = ("exceeded quota", "no space left", "cannot allocate memory", "too many open files")


class RefusedError(Exception):
    """The API server's own answer: HTTP status and the message of its `Status` object."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refusal(status: int, body: bytes) -> RefusedError:
    """The error that an answer's body tells of."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        message = body[:500].decode(errors="replace") or f"HTTP {status}"
    return RefusedError(status, str(message))


@contextmanager
def faults() -> Iterator[None]:
    """Turn what the client raises into `RuntimeFault`s."""
    try:
        yield
    except RefusedError as error:
        raise to_fault(error) from error
    except ConfigException as error:
        raise RuntimeUnavailableError(f"There is no way to the cluster: {error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RuntimeUnavailableError("The cluster doesn't answer.") from error


def to_fault(error: RefusedError) -> RuntimeFault:
    """The server's words decide where its status code doesn't."""
    message = str(error)
    lowered = message.lower()
    if "exceeded quota" in lowered:
        return quota_exceeded(message)
    if any(word in lowered for word in _EXHAUSTED):
        return ResourcesExhaustedError(message)
    if "being terminated" in lowered:
        return RuntimeUnavailableError(f"The projects' namespace is being removed: {message}")
    if error.status == CONFLICT:
        return NameTakenError(message)
    if error.status == NOT_FOUND and "namespaces" in lowered:
        return SpecInvalidError(f"The projects' namespace isn't there; make it with k8s/projects: {message}")
    return _by_status(error.status, message)


def _by_status(status: int, message: str) -> RuntimeFault:
    if status == UNAUTHORIZED:
        return RuntimeUnavailableError("The cluster doesn't accept the service's credentials.")
    if status == FORBIDDEN:
        return SpecInvalidError(f"The cluster doesn't let the service do that; see the role in k8s/projects: {message}")
    if status == NOT_FOUND:
        return NotRunningError(message)
    if status >= _SERVER_ERROR or status in {_TIMED_OUT, _THROTTLED, GONE}:
        return RuntimeUnavailableError(f"The cluster has trouble: {message}")
    return SpecInvalidError(message)


def quota_exceeded(message: str) -> RuntimeFault:
    """The namespace's quota is used up."""
    return ResourcesExhaustedError(f"The projects' quota is used up; stop another dev server first: {message}")


def message_of(status: Mapping[str, Any]) -> str:
    """What a `Status` or a waiting container has to say, on one line."""
    text = str(status.get("message") or status.get("reason") or "no reason given")
    return " ".join(text.split())[:500]
