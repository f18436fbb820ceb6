"""Lists: `?limit=` and `?cursor=` in, `{items, next_cursor}` out.

A cursor is opaque: today the id of the last item shown. Lists are ordered by id, so nothing is shown twice or left
out when rows come and go between two pages.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BaseModel

from workflows.contracts.errors import InvalidError

_MAX_ID = 2**63 - 1
_MAX_CURSOR = 200

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page. `next_cursor` is null on the last one."""

    items: list[Item]
    next_cursor: str | None


class PageRequest:
    """Which page a client wants. Repositories are asked for `limit + 1` rows, so that "is there more" is known."""

    def __init__(self, limit: int = 50, cursor: str | None = None) -> None:
        self.limit = limit
        self._cursor = cursor

    def after_id(self) -> int | None:
        """The number after which the page begins, None for the first. Raises `InvalidError` `bad_cursor`."""
        text = self._decoded()
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal()) or int(text) > _MAX_ID:
            raise _bad_cursor()
        return int(text)

    def after_uuid(self) -> UUID | None:
        """The UUID after which the page begins, None for the first. Raises `InvalidError` `bad_cursor`."""
        text = self._decoded()
        if text is None:
            return None
        try:
            return UUID(text)
        except ValueError as error:
            raise _bad_cursor() from error

    def answer(self, items: Sequence[Item], *, more: bool, last_id: Callable[[Item], int | UUID]) -> Page[Item]:
        """The page that shows `items`; `last_id` tells an item's id."""
        cursor = encode_cursor(last_id(items[-1])) if more and items else None
        return Page(items=list(items), next_cursor=cursor)

    def _decoded(self) -> str | None:
        if self._cursor is None:
            return None
        try:
            padded = self._cursor.encode("ascii") + b"=" * (-len(self._cursor) % 4)
            return base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        except (binascii.Error, UnicodeError) as error:
            raise _bad_cursor() from error


async def _page_request(
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=_MAX_CURSOR, description="`next_cursor` of the page before.")
    ] = None,
) -> PageRequest:
    return PageRequest(limit, cursor)


PageQuery = Annotated[PageRequest, Depends(_page_request)]


def encode_cursor(last_id: int | UUID) -> str:
    """The cursor of the page after this id."""
    return base64.urlsafe_b64encode(str(last_id).encode()).decode().rstrip("=")


def _bad_cursor() -> InvalidError:
    return InvalidError("The cursor isn't one that a list has given; start without it.", code="bad_cursor")
