"""`/api/projects/{id}/files` and `/archive`: read, write, move, batches, in and out as a whole."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response, status

from activities.ports import FileChange, FilePrecondition, OpenFile
from api.errors import problem_of, problems
from api.files.request import FilePath, ReadyProject, WriteCondition, body_of
from api.files.schemas import (
    BatchIn,
    BatchOut,
    ChangeOut,
    ErrorOut,
    FileOut,
    FilesOut,
    ImportOut,
    MoveIn,
    ResultOut,
    to_operation,
    unquoted,
)
from api.files.serving import (
    ByteRange,
    ClosingResponse,
    headers_of,
    not_modified,
    pieces_of,
    unsatisfiable,
    wanted_range,
)
from api.services import Services, ServicesDep
from storage import event_log, leases
from storage.projects import ProjectRecord
from workflows.contracts.dev_servers import LeaseKind
from workflows.contracts.errors import StudioError
from workflows.contracts.events import EventType, NewEvent

router = APIRouter(prefix="/api/projects/{project_id}", tags=["files"])

MAX_FILE = 10 * 1024 * 1024
MAX_ARCHIVE = 100 * 1024 * 1024
_MAX_LEVELS = 128
_EVENTS_AT_ONCE = 500

_READ_ERRORS = {409: "is_directory, not_a_directory, not_a_file, project_not_ready", 422: "bad_path"}
_WRITE_ERRORS = {
    409: "is_directory, not_a_directory, not_a_file, exists, project_not_ready, studio_folder_damaged",
    412: "stale_file",
    413: "too_large, project_full",
    422: "bad_path",
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BYTES_OUT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": _BYTES},
    206: {"description": "The range", "content": _BYTES},
    304: {"description": "The client has it"},
}
_BYTES_IN = {"requestBody": {"required": True, "content": _BYTES}}


@router.get("/files", responses=problems(404, _READ_ERRORS))
async def list_files(
    project: ReadyProject,
    services: ServicesDep,
    path: Annotated[
        str, Query(max_length=4096, description="The directory to list; the project's folder by default.")
    ] = "",
    depth: Annotated[int, Query(ge=1, le=_MAX_LEVELS, description="Levels below it; all by default.")] = _MAX_LEVELS,
    all_: Annotated[bool, Query(alias="all", description="Show the service's own `.studio/` too.")] = False,
) -> FilesOut:
    """The tree below a directory. `node_modules` is one entry, never walked (list it by its own `path`).

    Ends at 10,000 entries, `truncated` then. Not shown: sockets, FIFOs, devices, and names that aren't UTF-8.
    """
    listing = await services.files.entries(project.ref, path, depth=depth, include_all=all_)
    return FilesOut(items=[FileOut.model_validate(item) for item in listing.items], truncated=listing.truncated)


@router.get("/files/{path:anypath}", response_class=Response, responses=_BYTES_OUT | problems(404, 416, _READ_ERRORS))
async def read_file(
    project: ReadyProject,
    services: ServicesDep,
    path: FilePath,
    range_: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
    if_none_match: Annotated[str | None, Header(description="Etags that the client has.")] = None,
    if_range: Annotated[str | None, Header(description="The range only of this version.")] = None,
) -> Response:
    """The file's bytes. Links inside the project are followed; HTML and SVG come as a download, never as a page."""
    file = await services.files.open(project.ref, path)
    try:
        answer = _answer(file, range_, if_none_match, if_range)
    except BaseException:
        await file.close()
        raise
    if not isinstance(answer, ClosingResponse):
        await file.close()
    return answer


def _answer(file: OpenFile, range_: str | None, if_none_match: str | None, if_range: str | None) -> Response:
    headers = headers_of(file.entry)
    if not_modified(file.entry, if_none_match):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    try:
        part = wanted_range(file.entry, range_, if_range)
    except ValueError:
        return unsatisfiable(file.entry)
    code = status.HTTP_200_OK
    if part is not None:
        code = status.HTTP_206_PARTIAL_CONTENT
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{file.entry.size}"
    part = part or ByteRange(0, file.entry.size)
    headers["Content-Length"] = str(part.end - part.start)
    return ClosingResponse(pieces_of(file, part), status_code=code, headers=headers, file=file)


@router.head("/files/{path:anypath}", response_class=Response, responses=problems(404, _READ_ERRORS))
async def head_file(
    project: ReadyProject,
    services: ServicesDep,
    path: FilePath,
    if_none_match: Annotated[str | None, Header(description="Etags that the client has.")] = None,
) -> Response:
    """The file's headers: `Content-Length`, `Content-Type`, `ETag`."""
    file = await services.files.open(project.ref, path)
    await file.close()
    headers = headers_of(file.entry)
    if not_modified(file.entry, if_none_match):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(headers=headers | {"Content-Length": str(file.entry.size)})


@router.put(
    "/files/{path:anypath}",
    response_class=Response,
    status_code=status.HTTP_204_NO_CONTENT,
    responses={201: {"description": "Made; `ETag` has its etag"}, **problems(404, _WRITE_ERRORS)},
    openapi_extra=_BYTES_IN,
)
async def write_file(
    request: Request, project: ReadyProject, services: ServicesDep, path: FilePath, condition: WriteCondition
) -> Response:
    """Write a whole file of at most 10 MiB, its parents made. Readers see the old bytes or the new, nothing between.

    The file that a link inside the project leads to is written, not the link. `.studio/` can't be written.
    """
    tell = partial(_tell, services, project)
    change = await services.files.put(project.ref, path, body_of(request, MAX_FILE), condition, tell=tell)
    code = status.HTTP_201_CREATED if change.op == "created" else status.HTTP_204_NO_CONTENT
    return Response(status_code=code, headers={"ETag": f'"{change.etag}"'})


@router.delete("/files/{path:anypath}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(404, _WRITE_ERRORS))
async def delete_file(
    project: ReadyProject,
    services: ServicesDep,
    path: FilePath,
    recursive: Annotated[bool, Query(description="Needed for a directory.")] = False,
    if_match: Annotated[str | None, Header(description="Only the file with this etag.")] = None,
) -> None:
    """Delete a file, a link (not what it leads to), or a directory with all in it."""
    condition = FilePrecondition(if_match=unquoted(if_match))
    tell = partial(_tell, services, project)
    await services.files.delete(project.ref, path, recursive=recursive, precondition=condition, tell=tell)


@router.post("/files:move", status_code=status.HTTP_204_NO_CONTENT, responses=problems(404, _WRITE_ERRORS))
async def move_file(project: ReadyProject, services: ServicesDep, body: MoveIn) -> None:
    """Rename a file, link or directory; parents made. 409 `exists` without `overwrite`."""
    tell = partial(_tell, services, project)
    await services.files.move(project.ref, body.source, body.target, overwrite=body.overwrite, tell=tell)


@router.post("/files:batch", responses=problems(404, _WRITE_ERRORS))
async def change_files(project: ReadyProject, services: ServicesDep, body: BatchIn) -> BatchOut:
    """Several changes in order, at most 1,000 and 16 MiB of body.

    Each item has the status that its own request would have had. With `atomic` all or none are applied: where one
    fails, the others say `not_applied`.
    """
    operations = [to_operation(item) for item in body.operations]
    tell = partial(_tell, services, project)
    results = await services.files.batch(project.ref, operations, atomic=body.atomic, tell=tell)
    return BatchOut(items=[_result(result) for result in results])


def _result(result: list[FileChange] | StudioError) -> ResultOut:
    if isinstance(result, StudioError):
        problem = problem_of(result)
        code = status.HTTP_500_INTERNAL_SERVER_ERROR if problem is None else problem.status
        return ResultOut(status=code, error=ErrorOut(code=result.code, detail=result.detail))
    made = len(result) == 1 and result[0].op == "created"
    return ResultOut(
        status=status.HTTP_201_CREATED if made else status.HTTP_204_NO_CONTENT,
        changes=[ChangeOut.model_validate(change) for change in result],
    )


@router.get(
    "/archive",
    response_class=Response,
    responses={200: {"description": "A `.tar.gz`", "content": {"application/gzip": {}}}, **problems(404, _READ_ERRORS)},
)
async def export_archive(project: ReadyProject, services: ServicesDep) -> Response:
    """The whole project as `.tar.gz`, without `.studio/` and `node_modules`."""
    pieces = services.files.export(project.ref)
    first = await anext(pieces)  # a project without files is an error before the first byte
    headers = {
        "Content-Type": "application/gzip",
        "Content-Disposition": f'attachment; filename="project-{project.id}.tar.gz"',
        "Cache-Control": "private, no-store",
    }
    return ClosingResponse(_rejoined(first, pieces), status_code=status.HTTP_200_OK, headers=headers)


async def _rejoined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()


@router.put("/archive", responses=problems(404, _WRITE_ERRORS | {422: "bad_archive"}), openapi_extra=_BYTES_IN)
async def import_archive(request: Request, project: ReadyProject, services: ServicesDep) -> ImportOut:
    """Unpack a `.tar.gz` or `.zip` of at most 100 MiB over the project; files that it doesn't name stay.

    Unpacked at most 20,000 files and 200 MiB. One that is hostile or damaged is refused as a whole: `bad_archive`,
    nothing written. Members in `.studio/` and `node_modules/` are skipped.
    """
    tell = partial(_tell, services, project)
    changes = await services.files.import_archive(project.ref, body_of(request, MAX_ARCHIVE), tell=tell)
    created = sum(change.op == "created" for change in changes)
    return ImportOut(created=created, modified=len(changes) - created)


async def _tell(services: Services, project: ProjectRecord, changes: Sequence[FileChange]) -> None:
    """Append the changes to the project's log, and keep its dev server awake."""
    for start in range(0, len(changes), _EVENTS_AT_ONCE):
        events = [
            NewEvent(
                project_id=project.id,
                type=EventType.FILE_CHANGED,
                data={"path": change.path, "op": change.op, "etag": change.etag, "by": "user"},
            )
            for change in changes[start : start + _EVENTS_AT_ONCE]
        ]
        async with services.database.transaction() as session:
            await leases.renew(session, project.id, LeaseKind.FILES, "user", services.config.idle_timeout_s)
            event_log.append(session, events)
