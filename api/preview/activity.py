"""Preview traffic keeps a dev server awake, at no cost to the request that shows it."""

import asyncio
import time

import structlog

from storage import leases
from storage.engine import Database
from workflows.contracts.dev_servers import LeaseKind
from workflows.contracts.errors import UnavailableError

EVERY_S = 20.0
"""Traffic of one project is written down at most this often."""

_HOLDER = "visitors"
_PENDING_LIMIT = 32

log = structlog.get_logger()


class PreviewActivity:
    """Renews the `preview` leases of busy projects, beside the requests. `ttl_s`: how long one request keeps awake."""

    def __init__(self, database: Database, ttl_s: float) -> None:
        self._database = database
        self._ttl_s = ttl_s
        self._written: dict[int, float] = {}
        self._pending: set[asyncio.Task[None]] = set()

    def note(self, project_id: int) -> None:
        """Take note of a request; returns at once. Dropped when the database is behind: another one will come."""
        now = time.monotonic()
        if now - self._written.get(project_id, -EVERY_S) < EVERY_S or len(self._pending) >= _PENDING_LIMIT:
            return
        # Those whose time has passed say nothing any more: the map holds the last twenty seconds only.
        self._written = {known: at for known, at in self._written.items() if now - at < EVERY_S}
        self._written[project_id] = now
        task = asyncio.create_task(self._renew(project_id))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def close(self) -> None:
        """Wait for what is being written."""
        await asyncio.gather(*self._pending)

    async def _renew(self, project_id: int) -> None:
        try:
            async with self._database.transaction() as session:
                await leases.renew(session, project_id, LeaseKind.PREVIEW, _HOLDER, self._ttl_s)
        except UnavailableError as error:
            self._written.pop(project_id, None)
            log.warning("preview.lease_delayed", project_id=project_id, error=error.detail)
