"""What an engine's refusal means, by its cause."""

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiodocker.exceptions import DockerError

from activities.errors import (
    ContainerMissingError,
    ImageMissingError,
    NameTakenError,
    NoPlaceError,
    NotRunningError,
    ResourcesExhaustedError,
    RuntimeFault,
    RuntimeUnavailableError,
    SpecInvalidError,
)

FORBIDDEN = 403
NOT_FOUND = 404
CONFLICT = 409
NOT_MODIFIED = 304
_SERVER_ERROR = 500
_EXHAUSTED = (
    "no space left",
    "cannot allocate memory",
    "non-overlapping",
    "all predefined address pools",
    "too many open files",
    "resource temporarily unavailable",
)
_NO_PLACE = "no available ipv4"
_REFUSED = ("mount", "bind source path", "executable file not found", "invalid", "minimum memory", "range of cpus")


@contextmanager
def faults() -> Iterator[None]:
    """Turn what the client raises into `RuntimeFault`s."""
    try:
        yield
    except DockerError as error:
        raise to_fault(error) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RuntimeUnavailableError("The container engine doesn't answer.") from error


def to_fault(error: DockerError) -> RuntimeFault:
    """The engine's words decide where its status code doesn't."""
    message = str(error.message)
    lowered = message.lower()
    if any(word in lowered for word in (*_EXHAUSTED, _NO_PLACE)):
        return _exhausted(message)
    if error.status in {NOT_FOUND, CONFLICT}:
        return _absent(message) if error.status == NOT_FOUND else _in_the_way(message)
    if "is ambiguous" in lowered:  # two networks of one name, for a moment
        return NameTakenError(message)
    if "bind source path does not exist" in lowered:
        return SpecInvalidError("The project's folder isn't there on the engine's host.")
    if error.status < _SERVER_ERROR or any(word in lowered for word in _REFUSED):
        return SpecInvalidError(message)
    return RuntimeUnavailableError(f"The container engine has trouble: {message}")


def _exhausted(message: str) -> RuntimeFault:
    if _NO_PLACE in message.lower():
        return NoPlaceError("As many dev servers as can run at a time are running: stop another one first.")
    return ResourcesExhaustedError(message)


def _absent(message: str) -> RuntimeFault:
    if "no such image" in message.lower():
        return ImageMissingError(f"The dev server image isn't there: {message}")
    return ContainerMissingError(message)


def _in_the_way(message: str) -> RuntimeFault:
    return NotRunningError(message) if "is not running" in message.lower() else NameTakenError(message)
