"""What API and worker both stand on, built from the settings in one place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from activities.files.store import DiskFileStore
from activities.ports import FileStore, ResourceLimits, Runtime
from activities.runtimes.open import open_runtime
from storage.engine import Database
from storage.migrate import migrate
from storage.secret_box import SecretBox
from workers.numbering import begin_user_ids
from workers.settings import ServiceSettings

_POSTGRES_WAIT_S = 120.0


@dataclass(frozen=True)
class Foundation:
    """Database (migrated), files, runtime and keys; closed by the one who opened them."""

    database: Database
    files: FileStore
    runtime: Runtime
    secrets: SecretBox


@asynccontextmanager
async def open_foundation(settings: ServiceSettings) -> AsyncIterator[Foundation]:
    """Wait for Postgres, bring it to today's tables, open the rest. Several processes may do so at once.

    Raises `UnavailableError` when Postgres didn't answer for two minutes.
    """
    url = settings.database_url.get_secret_value()
    await migrate(url, wait_s=_POSTGRES_WAIT_S)
    database = Database(url)
    if settings.first_user_id is not None:
        await begin_user_ids(database, settings.first_user_id)
    runtime = open_runtime(settings)
    try:
        yield Foundation(
            database=database,
            files=DiskFileStore(settings.files_root),
            runtime=runtime,
            secrets=SecretBox(settings.secret_key.get_secret_value(), settings.secret_key_previous),
        )
    finally:
        await runtime.close()
        await database.close()


def dev_server_limits(settings: ServiceSettings) -> ResourceLimits:
    """Bounds of each dev server's container."""
    return ResourceLimits(
        memory_mb=settings.devserver_memory_mb, cpus=settings.devserver_cpus, pids=settings.devserver_pids
    )
