"""What the file routes read from a request: the path as it was sent, the body as it comes, the conditions."""

from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import quote, unquote_to_bytes

from fastapi import Depends, Header, Path, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect

from activities.ports import FilePrecondition
from api.files.schemas import unquoted
from api.projects.dependencies import OwnedProject
from storage.projects import ProjectRecord
from workflows.contracts.errors import BadPathError, ConflictError, InvalidError, NotFoundError, TooLargeError
from workflows.contracts.projects import ProjectState

_DRAINED = 64 * 1024 * 1024


class _AnyPath(Convertor[str]):
    """As Starlette's `path`, with line breaks: they are fine in file names."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anypath", _AnyPath())


async def file_path(
    request: Request,
    path: Annotated[  # noqa: ARG001 -- tells the OpenAPI document of the parameter
        str, Path(description="Relative to the project's folder; percent-encoded once, `/` may be plain.")
    ],
) -> str:
    """The path, decoded exactly once from what was sent: the server's own decoding replaces what isn't UTF-8."""
    raw = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    try:
        return unquote_to_bytes(raw).decode().partition("/files/")[2]
    except UnicodeDecodeError:
        raise BadPathError("A path must be valid UTF-8, percent-encoded.") from None


async def ready_project(project: OwnedProject) -> ProjectRecord:
    """The caller's project, when its files are there to be worked on."""
    if project.state == ProjectState.DELETING:
        raise NotFoundError
    if project.state != ProjectState.READY:
        raise ConflictError(
            f"The project's files aren't there: it is {project.state.lower()}.", code="project_not_ready"
        )
    return project


async def write_condition(
    if_match: Annotated[str | None, Header(description="Only over the file with this etag; `*`: over any.")] = None,
    if_none_match: Annotated[str | None, Header(description="`*`: only where nothing is.")] = None,
) -> FilePrecondition:
    """The condition under which to write. Raises `InvalidError` for an `If-None-Match` other than `*`."""
    if if_none_match is not None and if_none_match.strip() != "*":
        raise InvalidError("If-None-Match takes only * when writing.", code="bad_precondition")
    return FilePrecondition(unquoted(if_match), if_none_match is not None)


async def body_of(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body's pieces as they come. Raises `TooLargeError` beyond `most` bytes.

    Some of what is too much is read and dropped first: a connection closed under a client that still sends would
    lose the answer that tells it why.
    """
    announced = request.headers.get("content-length", "")
    total = 0
    too_large = announced.isdecimal() and int(announced) > most
    try:
        async for piece in request.stream():
            total += len(piece)
            too_large = too_large or total > most
            if not too_large:
                yield piece
            elif total > _DRAINED:
                break
    except ClientDisconnect:
        raise InvalidError("The body broke off.", code="incomplete_body") from None
    if too_large:
        raise TooLargeError(f"The body is larger than {most // 1024 // 1024} MiB.")


FilePath = Annotated[str, Depends(file_path)]
ReadyProject = Annotated[ProjectRecord, Depends(ready_project)]
WriteCondition = Annotated[FilePrecondition, Depends(write_condition)]
