"""What the system says of a path, in the domain's words."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workflows.contracts.errors import BadPathError, ConflictError, NotFoundError, StudioError, UnavailableError


def leaves_project(path: str) -> BadPathError:
    """The one text for every way out."""
    return BadPathError(f"The path {path!r} leads out of the project.")


def no_such_file(path: str) -> NotFoundError:
    """Nothing is at the path."""
    return NotFoundError(f"There is no {path!r} in this project.")


def is_directory(path: str) -> ConflictError:
    """A directory where a file is needed."""
    return ConflictError(f"{path!r} is a directory.", code="is_directory")


def not_a_file(path: str) -> ConflictError:
    """A FIFO, a socket or a device: never opened."""
    return ConflictError(f"{path!r} is neither a file nor a directory.", code="not_a_file")


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise the domain's error for a system error about `path`; unknown ones pass as they are."""
    try:
        yield
    except OSError as error:
        translation = _translate(error, path)
        if translation is None:
            raise
        raise translation from error


def _translate(error: OSError, path: str) -> StudioError | None:
    make = _TRANSLATIONS.get(error.errno or 0)
    return None if make is None else make(path)


def _not_a_directory(path: str) -> ConflictError:
    return ConflictError(f"A part of {path!r} is a file, not a directory.", code="not_a_directory")


def _taken(path: str) -> ConflictError:
    return ConflictError(f"There is something at {path!r} already.", code="exists")


def _bad_path(path: str) -> BadPathError:
    return BadPathError(f"{path!r} can't be a path in this project.")


def _full(_: str) -> UnavailableError:
    return UnavailableError("The disk that holds the projects is full.", code="disk_full", retry_after=60)


def _denied(path: str) -> ConflictError:
    return ConflictError(f"The service may not touch {path!r}; check its permissions.", code="not_permitted")


_TRANSLATIONS: dict[int, Callable[[str], StudioError]] = {
    errno.ENOENT: no_such_file,
    errno.ENOTDIR: _not_a_directory,
    errno.EISDIR: is_directory,
    errno.ENOTEMPTY: _taken,
    errno.EEXIST: _taken,
    errno.ELOOP: _bad_path,
    errno.EXDEV: _bad_path,
    errno.ENAMETOOLONG: _bad_path,
    errno.EINVAL: _bad_path,
    errno.EILSEQ: _bad_path,
    errno.ENOSPC: _full,
    errno.EDQUOT: _full,
    errno.EACCES: _denied,
    errno.EPERM: _denied,
    errno.EROFS: _denied,
}
