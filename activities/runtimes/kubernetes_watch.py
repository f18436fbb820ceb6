"""One watch over all projects' pods and one over their Deployments, shared by all who wait in this process.

It tells *when* to look, not what there is: it may lag behind. Who sees in it what they wait for reads the objects
themselves before they say so.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from typing import Final

import structlog

from activities.errors import RuntimeUnavailableError
from activities.runtimes.kubernetes_client import Cluster, Kind, Object
from activities.runtimes.kubernetes_faults import GONE, faults
from activities.runtimes.kubernetes_status import View, name_of, ref_of, view_of
from workflows.contracts.names import ProjectRef

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_KINDS: Final = (Kind.POD, Kind.DEPLOYMENT)
_log = structlog.get_logger(__name__)


class Bell:
    """Rings when something of one project has changed, and when everything was listed anew."""

    def __init__(self, watch: "SharedWatch", ref: ProjectRef) -> None:
        self._watch = watch
        self._ref = ref
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake who waits, or the next who does."""
        self._rung.set()

    def view(self) -> View | None:
        """The project as the watch knows it; None before the first list. What changes after this rings."""
        self._rung.clear()
        return self._watch.view(self._ref)

    async def rung(self, within_s: float | None) -> bool:
        """Whether it rang, since `view` or within that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._rung.wait()
                return True
        return False


class SharedWatch:
    """List, then watch; listed anew when the server has forgotten the version (410), with growing pauses when it fails.

    Begins with the first bell and goes on until it is closed.
    """

    def __init__(self, cluster: Cluster, labels: str) -> None:
        self._cluster = cluster
        self._labels = labels
        self._bells: dict[ProjectRef, set[Bell]] = {}
        self._known: dict[Kind, dict[ProjectRef, dict[str, Object]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def bell(self, ref: ProjectRef) -> Iterator[Bell]:
        """A bell for the project, as long as the context lasts."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._follow(kind)) for kind in _KINDS]
        bell = Bell(self, ref)
        self._bells.setdefault(ref, set()).add(bell)
        try:
            yield bell
        finally:
            self._bells[ref].discard(bell)
            if not self._bells[ref]:
                del self._bells[ref]

    def view(self, ref: ProjectRef) -> View | None:
        """The project as it was told last; None before the first list of both kinds."""
        if len(self._known) < len(_KINDS):
            return None
        deployments = self._known[Kind.DEPLOYMENT].get(ref, {})
        return view_of(next(iter(deployments.values()), None), list(self._known[Kind.POD].get(ref, {}).values()))

    async def close(self) -> None:
        """End the watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _follow(self, kind: Kind) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                with faults():
                    version = await self._list(kind)
                    pause = _FIRST_PAUSE_S
                    while version:
                        version = await self._take_changes(kind, version)
                        await asyncio.sleep(pause)  # however soon the server ends it
            except Exception as error:  # noqa: BLE001 -- whoever waits here would wait for ever
                _log.warning("cluster.watch_broke_off", kind=kind.name, error=str(error))
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 -- to spread load

    async def _list(self, kind: Kind) -> str:
        found, version = await self._cluster.list(kind, labels=self._labels)
        known: dict[ProjectRef, dict[str, Object]] = {}
        for one in found:
            if (ref := ref_of(one)) is not None:
                known.setdefault(ref, {})[name_of(one)] = one
        self._known[kind] = known
        for ref in list(self._bells):
            self._ring(ref)
        return version

    async def _take_changes(self, kind: Kind, version: str) -> str:
        """Follow one watch to its end; the version to go on from, empty when the server has forgotten it."""
        async for change in self._cluster.watch(kind, labels=self._labels, version=version):
            found = change["object"]
            if change["type"] == "ERROR":
                if found.get("code") == GONE:
                    return ""
                raise RuntimeUnavailableError(str(found.get("message", "The watch failed.")))
            version = str(found["metadata"]["resourceVersion"])
            if change["type"] != "BOOKMARK":
                self._take(kind, found, gone=change["type"] == "DELETED")
        return version

    def _take(self, kind: Kind, found: Object, *, gone: bool) -> None:
        ref = ref_of(found)
        if ref is None:
            return
        mine = self._known[kind].setdefault(ref, {})
        if gone:
            mine.pop(name_of(found), None)
        else:
            mine[name_of(found)] = found
        if not mine:
            del self._known[kind][ref]
        self._ring(ref)

    def _ring(self, ref: ProjectRef) -> None:
        for bell in self._bells.get(ref, ()):
            bell.ring()
