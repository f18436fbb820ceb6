"""The domain's errors: what can go wrong, under one stable word each.

    StudioError
    ├── NotFoundError              no such thing, or somebody else's
    ├── ConflictError              legal, but not in this state
    ├── InvalidError               the request can never work as it is
    │   └── BadPathError           a path that leaves its project
    ├── DeniedError                known who, but not allowed to
    ├── UnauthenticatedError       not known who
    ├── ThrottledError             too often; carries the seconds to wait
    └── UnavailableError           a dependency is down; worth trying again

`code` is part of the public contract (API.md); only `api/errors.py` knows the status code of each class.
`detail` is written for the person who made the request: what is wrong and what to do. It never holds a secret.
"""

from collections.abc import Mapping
from typing import ClassVar


class StudioError(Exception):
    """Root of the tree. `code`: stable snake_case word; `retryable`: the same request may work later."""

    default_code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code


class NotFoundError(StudioError):
    """No such thing, or somebody else's: the two answer alike."""

    default_code = "not_found"

    def __init__(self, detail: str = "There is nothing here, or it isn't yours.", *, code: str | None = None) -> None:
        super().__init__(detail, code=code)


class ConflictError(StudioError):
    """The request is fine, but not in the present state. `facts`: that state, as further members of the answer."""

    default_code = "conflict"

    def __init__(self, detail: str, *, code: str | None = None, facts: Mapping[str, str | None] | None = None) -> None:
        super().__init__(detail, code=code)
        self.facts = facts or {}


class PreconditionError(StudioError):
    """`If-Match` or `If-None-Match` didn't hold."""

    default_code = "stale_file"


class InvalidError(StudioError):
    """The request can never work as it is."""

    default_code = "invalid"


class BadPathError(InvalidError):
    """The path leaves its project, or can't name a file."""

    default_code = "bad_path"


class TooLargeError(StudioError):
    """The body or its content is over a limit that the detail names."""

    default_code = "too_large"


class DeniedError(StudioError):
    """It is known who asks, and that they may not: scope or role."""

    default_code = "forbidden"


class UnauthenticatedError(StudioError):
    """No valid credentials."""

    default_code = "unauthenticated"


class ThrottledError(StudioError):
    """Too many requests. `retry_after`: seconds to wait."""

    default_code = "too_many_requests"
    retryable = True

    def __init__(self, detail: str, *, retry_after: int, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class UnavailableError(StudioError):
    """A dependency doesn't answer. `retry_after`: seconds after which it is worth another try."""

    default_code = "unavailable"
    retryable = True

    def __init__(self, detail: str, *, retry_after: int = 2, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after
