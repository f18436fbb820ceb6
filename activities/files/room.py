"""How much more a project may take. Measured now and then, counted in between: a bound, not a quota.

A program in the container writes without asking here; its growth is seen at the next measurement. A quota of the
file system, where there is one, is the exact bound.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from activities.files.trees import measure
from workflows.contracts.errors import TooLargeError
from workflows.contracts.names import ProjectRef

_FRESH_S = 60.0
_MOST_ENTRIES = 500_000
_MOST_PROJECTS = 1000


@dataclass
class _Usage:
    size: int
    measured_at: float


class DiskRoom:
    """What each project was last seen to hold. A cache: losing it costs a measurement."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._usage: dict[ProjectRef, _Usage] = {}

    def knows(self, ref: ProjectRef, *, fresh_s: float = _FRESH_S) -> bool:
        """Whether the project was measured within the last `fresh_s`."""
        usage = self._usage.get(ref)
        return usage is not None and time.monotonic() - usage.measured_at <= fresh_s

    def fits(self, ref: ProjectRef, size: int) -> bool:
        """Whether `size` more bytes stay within the bound, by what is known."""
        usage = self._usage.get(ref)
        return usage is None or usage.size + size <= self._limit

    def measure(self, ref: ProjectRef, root: Path) -> None:
        """Measure now; blocking."""
        size, entries = measure(root, most_entries=_MOST_ENTRIES)
        if len(self._usage) >= _MOST_PROJECTS:
            self._usage.pop(next(iter(self._usage)), None)
        self._usage[ref] = _Usage(self._limit if entries > _MOST_ENTRIES else size, time.monotonic())

    def take(self, ref: ProjectRef, size: int) -> None:
        """Count bytes that are about to be written. Raises `TooLargeError` `project_full`."""
        if not self.fits(ref, size):
            raise TooLargeError(
                f"The project holds its {self._limit // 1024 // 1024} MiB, or too many files; delete some first.",
                code="project_full",
            )
        if ref in self._usage:
            self._usage[ref].size += size

    def forget(self, ref: ProjectRef) -> None:
        """The project is gone."""
        self._usage.pop(ref, None)
