"""`Prefer: wait=N` (RFC 7240): hold the answer of a POST until its operation ends, N seconds at most."""

import re
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header

from workflows.contracts.errors import InvalidError

MAX_WAIT_S = 60
_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*', re.IGNORECASE)


async def wanted_wait(
    prefer: Annotated[
        str | None,
        Header(max_length=200, description=f"`wait=N`: hold the answer until the work ends, N ≤ {MAX_WAIT_S}."),
    ] = None,
) -> int:
    """Seconds that the client wants to wait: 0 without the header. Other preferences are ignored, as RFC 7240 says.

    Raises `InvalidError` `bad_prefer` when N is over the bound.
    """
    for preference in (prefer or "").split(","):
        match = _WAIT.fullmatch(preference)
        if match is not None:
            seconds = int(match[1])
            if seconds > MAX_WAIT_S:
                raise InvalidError(f"Prefer: wait takes at most {MAX_WAIT_S} seconds.", code="bad_prefer")
            return seconds
    return 0


WantedWait = Annotated[int, Depends(wanted_wait)]


def operation_location(operation_id: UUID) -> str:
    """Value of the `Location` header of a 202."""
    return f"/api/operations/{operation_id}"
