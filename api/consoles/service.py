"""What a console holds while it is open: a place among its user's, and a lease that keeps the server awake."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import uuid4

import anyio

from activities.ports import ContainerState
from api.services import Services
from storage import leases, projects
from storage.projects import ProjectRecord
from workflows.contracts.dev_servers import LeaseKind
from workflows.contracts.errors import ConflictError, ThrottledError, UnavailableError
from workflows.contracts.projects import ProjectState

EXECS_PER_USER = 8
TERMINALS_PER_USER = 16
"""At a time, in one API process."""

RENEWAL_S = 60.0
_LEASE_S = 150.0
_RETRY_S = 5


class Places:
    """Counts what each user has open in this process: a bound on what they can use up, not a record of anything."""

    def __init__(self, limit: int, noun: str) -> None:
        self._limit = limit
        self._noun = noun
        self._taken: Counter[int] = Counter()

    def require(self, user_id: int) -> None:
        """Raise `ThrottledError` when all places are taken."""
        if self._taken[user_id] >= self._limit:
            raise ThrottledError(f"You have {self._limit} {self._noun} open; let one end first.", retry_after=_RETRY_S)

    @contextmanager
    def take(self, user_id: int) -> Iterator[None]:
        """A place, for as long as the context is open. Raises `ThrottledError` when all are taken."""
        self.require(user_id)
        self._taken[user_id] += 1
        try:
            yield
        finally:
            self._taken[user_id] -= 1
            if not self._taken[user_id]:
                del self._taken[user_id]


EXECS = Places(EXECS_PER_USER, "commands")
TERMINALS = Places(TERMINALS_PER_USER, "terminals")


async def require_running(services: Services, project: ProjectRecord) -> None:
    """Raise `ConflictError` `not_running` unless the project's container runs."""
    status = await services.runtime.inspect(project.ref)
    if status is None or status.state is not ContainerState.RUNNING:
        raise ConflictError(
            "The project's dev server isn't running; start it with POST /api/projects/{id}/start.", code="not_running"
        )


@asynccontextmanager
async def keeping_awake(services: Services, project: ProjectRecord, kind: LeaseKind) -> AsyncIterator[asyncio.Event]:
    """Hold a lease, renewed each minute. The event given is set when the project is gone: time to end."""
    holder = uuid4().hex
    gone = asyncio.Event()
    await _renew(services, project, kind, holder)
    renewing = asyncio.create_task(_keep_renewing(services, project, kind, holder, gone), name=f"{kind} lease")
    try:
        yield gone
    finally:
        renewing.cancel()
        # A lease that can't be given back runs out by itself.
        with anyio.CancelScope(shield=True), contextlib.suppress(UnavailableError):
            async with services.database.transaction() as session:
                await leases.release(session, project.id, kind, holder)


async def _keep_renewing(
    services: Services, project: ProjectRecord, kind: LeaseKind, holder: str, gone: asyncio.Event
) -> None:
    while not gone.is_set():
        await asyncio.sleep(RENEWAL_S)
        try:
            if not await _renew(services, project, kind, holder):
                gone.set()
        except UnavailableError:
            continue  # the lease lasts longer than two turns


async def _renew(services: Services, project: ProjectRecord, kind: LeaseKind, holder: str) -> bool:
    """Whether the project is still there, with its lease renewed."""
    async with services.database.transaction() as session:
        found = await projects.get(session, project.id)
        if found is None or found.state == ProjectState.DELETING:
            return False
        await leases.renew(session, project.id, kind, holder, _LEASE_S)
    return True
