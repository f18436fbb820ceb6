"""Commands to dev servers: the row first, then the workflow. A command is accepted when its row is committed."""

import structlog
from temporalio.client import Client
from temporalio.service import RPCError

from api.services import ApiConfig, Services
from storage import dev_server_commands
from storage.operations import OperationRecord
from storage.projects import ProjectRecord
from workflows.contracts.dev_servers import DevServerAction, DevServerCommand, DevServerInput
from workflows.contracts.names import ProjectRef
from workflows.contracts.starts import command_dev_server

log = structlog.get_logger("api.dev_servers")


async def command(services: Services, project: ProjectRecord, action: DevServerAction) -> OperationRecord:
    """Accept a command for the project's dev server and hand it to its workflow.

    Raises `UnavailableError` when Temporal is away (nothing accepted then), `NotFoundError` when the project is
    gone, `ConflictError` `project_failed` or `project_deleting`.
    """
    client = await services.temporal.require()
    async with services.database.transaction() as session:
        accepted = await dev_server_commands.accept(session, project.id, action)
    await _signal(client, services.config, project.ref, accepted.command)
    return accepted.operation


async def _signal(client: Client, config: ApiConfig, ref: ProjectRef, accepted: DevServerCommand) -> None:
    """Tell the workflow. The row stands already: should Temporal fail right here, `Reconcile` tells it."""
    server = DevServerInput(
        user_id=ref.user_id,
        project_id=ref.project_id,
        start_timeout_s=config.start_timeout_s,
        idle_grace_s=config.idle_grace_s,
    )
    try:
        await command_dev_server(client, server, accepted)
    except RPCError as error:
        log.warning("dev_server.signal_delayed", project_id=ref.project_id, error=error.status.name)
