"""A dev server's output: from its pod, and once there is no pod from what was kept of it.

A pod takes its log along when it goes. So a stop keeps the end of it beside the user's projects, where no container
can reach: `users/{u}/logs/{p}.log`.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from activities.errors import ContainerMissingError, RuntimeFault
from activities.ports import ContainerState
from activities.runtimes.kubernetes_client import Cluster, Object
from activities.runtimes.kubernetes_faults import RefusedError, faults
from activities.runtimes.kubernetes_objects import ProjectObjects
from activities.runtimes.kubernetes_spec import CONTAINER_NAME
from activities.runtimes.kubernetes_status import View, container_of, name_of, to_status, uid_of
from workflows.contracts.names import ProjectRef, user_subpath

_KEPT_LINES: Final = 10_000
_KEPT_BYTES: Final = 1024 * 1024
_KEEPING_S: Final = 5.0
_SETTLING_S: Final = 6.0
"""The end of a log is seen before the end of its container is."""
_LAST_S: Final = 2.0
"""The end of a container is seen before the last of its log is: a kubelet looks each second."""
_COMING_S: Final = 60.0
"""How long a follower waits for a pod that is on its way."""
_SWEPT: Final = b"unable to retrieve container logs for "
"""A kubelet's answer, as if it were the log, for a container whose remains it has removed."""
_NO_SUCH_LOG: Final = {400, 404}  # the container hasn't begun, or the node has its log no more


class Logs:
    """Reads logs, and keeps their ends. Raises `RuntimeFault`s."""

    def __init__(self, cluster: Cluster, objects: ProjectObjects, projects_root: Path) -> None:
        self._cluster = cluster
        self._objects = objects
        self._root = projects_root

    async def read(self, ref: ProjectRef, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """See `Runtime.logs`. A follower whose connection breaks off may get the last second's lines twice; a pod that
        takes another's place is followed from its first line.
        """
        view = await self._objects.look(ref)
        if view.deployment is None:
            raise ContainerMissingError("This project has no container yet.")
        if follow and _state(view) is not ContainerState.EXITED:
            pieces = self._followed(ref, view, tail)
        else:
            pieces = self._once(ref, view, tail)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def keep(self, ref: ProjectRef, view: View) -> bool:
        """Keep the end of a log that is about to go: of a pod that is stopped, of a container that has ended (a node
        sweeps up its remains when it likes). Whether that is done; what can't be had is no reason to fail.
        """
        if view.pod is None or not _has_run(view.pod):
            return True
        text = bytearray()
        with contextlib.suppress(RuntimeFault, TimeoutError, OSError):
            async with asyncio.timeout(_KEEPING_S), contextlib.aclosing(self._once(ref, view, _KEPT_LINES)) as pieces:
                async for piece in pieces:
                    text += piece
                    del text[:-_KEPT_BYTES]
            if text:
                await asyncio.to_thread(self._write, ref, bytes(text))
            return True
        return False

    async def forget(self, ref: ProjectRef) -> None:
        """Remove what was kept."""
        await asyncio.to_thread(self._kept(ref).unlink, missing_ok=True)

    async def _once(self, ref: ProjectRef, view: View, tail: int) -> AsyncGenerator[bytes, None]:
        """What there is now."""
        pod = view.pod
        if pod is not None and _has_run(pod):
            for previous, pause in _places(view):
                await asyncio.sleep(pause)
                empty = True
                async for piece in self._pieces(pod, [("tailLines", str(tail))], previous=previous):
                    empty = False
                    yield piece
                if not empty:
                    return
        if _state(view) is not ContainerState.RUNNING and (kept := await asyncio.to_thread(self._read, ref, tail)):
            yield kept

    async def _followed(self, ref: ProjectRef, view: View, tail: int) -> AsyncGenerator[bytes, None]:
        """What there is and what comes, until the server has ended."""
        query, followed, heard_at = [("tailLines", str(tail))], "", 0.0
        deadline = time.monotonic() + _COMING_S
        while (left := deadline - time.monotonic()) > 0:
            pod, state = view.pod, _state(view)
            if pod is not None and state is ContainerState.RUNNING:
                if followed and followed != uid_of(pod):
                    query = []
                elif heard_at:
                    query = [("sinceSeconds", str(math.ceil(time.monotonic() - heard_at) + 1))]
                followed = uid_of(pod)
                async with contextlib.aclosing(self._flow(ref, pod, query)) as pieces:
                    async for piece in pieces:
                        heard_at = time.monotonic()
                        yield piece
                await self._objects.until(ref, partial(_has_ended, pod), _SETTLING_S)
                deadline = time.monotonic() + _COMING_S
            elif state is ContainerState.CREATED:
                await self._objects.until(ref, lambda seen: _state(seen) is not ContainerState.CREATED, left)
            else:
                break
            view = await self._objects.look(ref)
        if not heard_at:
            async for piece in self._once(ref, view, tail):
                yield piece

    async def _flow(
        self, ref: ProjectRef, pod: Object, query: Sequence[tuple[str, str]]
    ) -> AsyncGenerator[bytes, None]:
        """The pod's log as it comes, to its end. Once the server is known to have ended, until nothing comes any more:
        it may be the parked container's that is followed, and that one goes on.
        """
        pieces = self._pieces(pod, query, follow=True)
        ended = asyncio.create_task(self._objects.until(ref, partial(_has_ended, pod), None))
        reading: asyncio.Future[bytes] = asyncio.ensure_future(anext(pieces, b""))
        try:
            while True:
                over = ended.done()
                if over:
                    ended.result()
                waited_for: list[asyncio.Future[Any]] = [reading] if over else [reading, ended]
                await asyncio.wait(waited_for, timeout=_LAST_S if over else None, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    if not (piece := reading.result()):
                        return
                    yield piece
                    reading = asyncio.ensure_future(anext(pieces, b""))
                elif over:
                    return
        finally:
            ended.cancel()
            reading.cancel()
            await asyncio.gather(ended, reading, return_exceptions=True)
            await pieces.aclose()

    async def _pieces(
        self, pod: Object, query: Sequence[tuple[str, str]], *, previous: bool = False, follow: bool = False
    ) -> AsyncGenerator[bytes, None]:
        with faults():
            try:
                async for piece in self._cluster.log(name_of(pod), _query(query, previous=previous), follow=follow):
                    if piece.startswith(_SWEPT):
                        return
                    yield piece
            except RefusedError as error:
                if error.status not in _NO_SUCH_LOG:
                    raise

    def _kept(self, ref: ProjectRef) -> Path:
        return self._root / user_subpath(ref.user_id) / "logs" / f"{ref.project_id}.log"

    def _write(self, ref: ProjectRef, text: bytes) -> None:
        path = self._kept(ref)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}")
        temporary.write_bytes(text)
        temporary.rename(path)

    def _read(self, ref: ProjectRef, tail: int) -> bytes:
        try:
            lines = self._kept(ref).read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return b""
        return b"".join(lines[-tail:] if tail else [])


def _state(view: View) -> ContainerState | None:
    status = to_status(view)
    return None if status is None else status.state


def _has_run(pod: Object) -> bool:
    container = container_of(pod)
    state = container.get("state") or {}
    return bool(container.get("restartCount")) or "running" in state or "terminated" in state


def _has_ended(pod: Object, view: View) -> bool:
    """Whether nothing of the pod's server runs any more: it has gone, or parks, or is about to."""
    now = next((one for one in view.pods if uid_of(one) == uid_of(pod)), None)
    container = {} if now is None else container_of(now)
    return bool(container.get("restartCount")) or "running" not in (container.get("state") or {})


def _places(view: View) -> tuple[tuple[bool, float], ...]:
    """Where the log may be, in this order: whether of the previous container, after how long a pause. What has just
    ended may be parking at this moment.
    """
    if view.pod is not None and container_of(view.pod).get("restartCount"):
        return ((True, 0.0),)
    if _state(view) is ContainerState.EXITED:
        return ((True, 0.0), (False, 0.0), (True, 0.5), (True, 1.5))
    return ((False, 0.0), (True, 0.0))


def _query(query: Sequence[tuple[str, str]], *, previous: bool) -> list[tuple[str, str]]:
    return [("container", CONTAINER_NAME), ("previous", "true" if previous else "false"), *query]
