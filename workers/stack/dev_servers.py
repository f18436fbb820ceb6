"""Stops every dev server of a stack that is about to end: `python -m workers.stack.dev_servers`.

As a user's stop would: row, event and workflow agree that the server is stopped, so the next stack finds none crashed.
What doesn't follow in time is stopped at the runtime itself.
"""

import asyncio
import sys
import time

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError

from activities.errors import RuntimeFault
from activities.ports import ContainerState, Runtime
from activities.runtimes.open import open_runtime
from storage import dev_servers, projects
from storage.engine import Database
from workers.settings import ServiceSettings, load_service_settings
from workers.wiring import revealed, runtime_settings
from workflows.contracts.dev_servers import DevServerAction, DevServerCommand, DevServerInput
from workflows.contracts.errors import UnavailableError
from workflows.contracts.names import ProjectRef
from workflows.contracts.starts import command_dev_server

_ORDERLY_S = 15.0
_POLL_S = 0.1
_AT_MOST = 1000


async def stop_all(settings: ServiceSettings) -> None:
    """Return when no dev server runs. Raises `RuntimeFault` when the runtime doesn't let one be stopped."""
    database = Database(settings.database_url.get_secret_value())
    try:
        await _stop_in_order(settings, database)
    except (RPCError, RuntimeError, UnavailableError, TimeoutError) as error:
        print(f"not stopped in order: {error!r}", file=sys.stderr)
    finally:
        await database.close()
    async with open_runtime(runtime_settings(settings)) as runtime:
        await _stop_the_rest(runtime)


async def _stop_in_order(settings: ServiceSettings, database: Database) -> None:
    servers = await _moving(database)
    if not servers:
        return
    client = await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        data_converter=pydantic_data_converter,
        tls=settings.temporal_encrypted,
        api_key=revealed(settings.temporal_api_key),
    )
    for ref in servers:
        command = await _accept_stop(database, ref)
        if command is not None:
            await command_dev_server(client, DevServerInput(user_id=ref.user_id, project_id=ref.project_id), command)
    deadline = time.monotonic() + _ORDERLY_S
    while await _moving(database):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still moving after {_ORDERLY_S:g} s")
        await asyncio.sleep(_POLL_S)


async def _moving(database: Database) -> list[ProjectRef]:
    async with database.transaction() as session:
        return [standing.ref for standing in await dev_servers.in_motion(session, older_than_s=0, limit=_AT_MOST)]


async def _accept_stop(database: Database, ref: ProjectRef) -> DevServerCommand | None:
    """The command, or None when the project was deleted meanwhile."""
    async with database.transaction() as session:
        if await projects.lock(session, ref.project_id) is None:
            return None
        return await dev_servers.accept(session, ref.project_id, DevServerAction.STOP)


async def _stop_the_rest(runtime: Runtime) -> None:
    running = [status.ref for status in await runtime.discover() if status.state == ContainerState.RUNNING]
    results = await asyncio.gather(*(runtime.stop(ref) for ref in running), return_exceptions=True)
    faults = [result for result in results if isinstance(result, RuntimeFault)]
    if faults:
        raise faults[0]


if __name__ == "__main__":
    asyncio.run(stop_all(load_service_settings()))
