"""Several file operations in order: each for itself, or all or none. Blocking, under the project's lock."""

from collections.abc import Mapping, Sequence

from activities.files.writing import Journal, ProjectWriter, TempFile
from activities.ports import DeleteFile, FileChange, FileOperation, MoveFile, PutFile
from workflows.contracts.errors import ConflictError, StudioError

BatchResult = list[FileChange] | StudioError


def apply_each(
    files: ProjectWriter, operations: Sequence[FileOperation], temps: Mapping[int, TempFile]
) -> list[BatchResult]:
    """Apply in order; one that fails doesn't keep the others. `temps`: the put files' contents by index."""
    results: list[BatchResult] = []
    for index, operation in enumerate(operations):
        try:
            results.append(_apply(files, operation, temps.get(index), None))
        except StudioError as error:
            results.append(error)
    return results


def apply_all_or_none(
    files: ProjectWriter, operations: Sequence[FileOperation], temps: Mapping[int, TempFile]
) -> list[BatchResult]:
    """Apply in order, or nothing when one fails.

    What can be known before is checked before any effect, so that nobody sees (and no etag tells of) a batch that is
    taken back; the journal is for what shows only on the way: bytes and names are as before then, etags are new.
    """
    failed = _first_refused(files, operations)
    if failed is not None:
        return _none_applied(operations, *failed)
    journal = Journal()
    results: list[BatchResult] = []
    try:
        for index, operation in enumerate(operations):
            results.append(_apply(files, operation, temps.get(index), journal))
    except StudioError as error:
        journal.roll_back()
        return _none_applied(operations, len(results), error)
    except BaseException:
        journal.roll_back()
        raise
    finally:
        files.discard_names(journal.discarded)
    return results


def _first_refused(files: ProjectWriter, operations: Sequence[FileOperation]) -> tuple[int, StudioError] | None:
    touched: set[str] = set()
    for index, operation in enumerate(operations):
        paths = _paths(operation)
        if not any(_related(path, other) for path in paths for other in touched):
            try:
                _check(files, operation)
            except StudioError as error:
                return index, error
        touched.update(paths)
    return None


def _none_applied(operations: Sequence[FileOperation], failed: int, error: StudioError) -> list[BatchResult]:
    others = ConflictError(f"Not applied: operation {failed} of this atomic batch failed.", code="not_applied")
    return [error if index == failed else others for index in range(len(operations))]


def _paths(operation: FileOperation) -> tuple[str, ...]:
    return (operation.source, operation.target) if isinstance(operation, MoveFile) else (operation.path,)


def _related(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


def _check(files: ProjectWriter, operation: FileOperation) -> None:
    match operation:
        case PutFile(path=path, precondition=precondition):
            files.check_put(path, precondition)
        case DeleteFile(path=path, recursive=recursive, precondition=precondition):
            files.check_delete(path, recursive=recursive, precondition=precondition)
        case MoveFile(source=source, target=target, overwrite=overwrite):
            files.check_move(source, target, overwrite=overwrite)


def _apply(
    files: ProjectWriter, operation: FileOperation, temp: TempFile | None, journal: Journal | None
) -> list[FileChange]:
    match operation:
        case PutFile(path=path, precondition=precondition):
            if temp is None:
                raise AssertionError("a put needs its content")
            return [files.commit(temp, path, precondition, journal=journal)]
        case DeleteFile(path=path, recursive=recursive, precondition=precondition):
            return [files.delete(path, recursive=recursive, precondition=precondition, journal=journal)]
        case MoveFile(source=source, target=target, overwrite=overwrite):
            return files.move(source, target, overwrite=overwrite, journal=journal)
