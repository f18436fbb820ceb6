"""The effects of a reconciliation: whatever died at whatever moment, the rows' promises are kept."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import structlog
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.agent.recovery import TaskRecovery
from activities.ports import ContainerState, ContainerStatus, Runtime
from activities.working import working
from storage import dev_servers, expiry, model_keys, operations, projects, users
from storage.dev_servers import StandingCommand
from storage.engine import Database
from storage.secret_box import SecretBox
from workflows.contracts.dev_servers import DevServerInput, DevServerState
from workflows.contracts.names import (
    ProjectRef,
    delete_project_id,
    dev_server_id,
    offboard_user_id,
    onboard_user_id,
    provision_project_id,
)
from workflows.contracts.offboarding import OffboardInput
from workflows.contracts.onboarding import OnboardInput
from workflows.contracts.operations import OperationKind
from workflows.contracts.projects import ProjectInput, ProjectState
from workflows.contracts.reconcile import ReconcileActivities, ReconcileInput, ReconcileReport
from workflows.contracts.starts import (
    command_dev_server,
    start_delete_project,
    start_offboard_user,
    start_onboard_user,
    start_provision_project,
)

log = structlog.get_logger()

_AT_MOST: Final = 500
"""Of each kind in one pass; the next pass takes the rest."""
_DOWN: Final = {DevServerState.STOPPED, DevServerState.FAILED}


class Reconciliation(ReconcileActivities):
    """Reconcile activities over the database, the runtime and Temporal itself.

    `key_secrets`: what encrypts users' keys at the LLM proxy; None where there is no proxy. `monthly_usd`: what models
    may cost a user in a month who has no budget of their own.
    """

    def __init__(
        self,
        database: Database,
        runtime: Runtime,
        client: Client,
        *,
        start_timeout_s: float,
        idle_grace_s: float,
        key_secrets: SecretBox | None = None,
        monthly_usd: Decimal | None = None,
    ) -> None:
        self._database = database
        self._runtime = runtime
        self._client = client
        self._start_timeout_s = start_timeout_s
        self._idle_grace_s = idle_grace_s
        self._key_secrets = key_secrets
        self._tasks = TaskRecovery(database, client, monthly_usd=monthly_usd)

    # --- rows whose workflow isn't there ---

    @activity.defn(name="restart_lost_work")
    async def restart_lost_work(self, request: ReconcileInput) -> ReconcileReport:
        """See `ReconcileActivities`."""
        async with working():
            return ReconcileReport(
                provisions=await self._restart(
                    request,
                    ProjectState.PROVISIONING,
                    OperationKind.PROVISION_PROJECT,
                    provision_project_id,
                    start_provision_project,
                ),
                deletions=await self._restart(
                    request,
                    ProjectState.DELETING,
                    OperationKind.DELETE_PROJECT,
                    delete_project_id,
                    start_delete_project,
                ),
                commands=await self._resend_commands(request),
                onboardings=await self._onboard(request),
                offboardings=await self._offboard(request),
                tasks=await self._tasks.mend(request),
            )

    async def _restart(
        self,
        request: ReconcileInput,
        state: ProjectState,
        kind: OperationKind,
        workflow_id: Callable[[int], str],
        start: Callable[[Client, ProjectInput], Awaitable[None]],
    ) -> list[int]:
        """Start the workflow of each project that has been in `state` for long without one."""
        async with self._database.transaction() as session:
            waiting = await projects.in_state(session, state, older_than_s=request.grace_s, limit=_AT_MOST)
        lost = [project for project in waiting if not await self._runs(workflow_id(project.id))]
        begun = []
        for project in lost:
            async with self._database.transaction() as session:
                now = await projects.lock(session, project.id)
                if now is None or now.state != state:
                    continue  # its workflow ended well between the two looks
                begun.append(project.id)
                if request.dry_run:
                    continue
                operation = await operations.running(session, project.id, kind) or await operations.create(
                    session, user_id=project.user_id, project_id=project.id, kind=kind
                )
            await start(
                self._client,
                ProjectInput(user_id=project.user_id, project_id=project.id, operation_id=str(operation.id)),
            )
            log.warning("reconcile.restarted", project_id=project.id, kind=kind)
        return begun

    async def _resend_commands(self, request: ReconcileInput) -> list[int]:
        """Send again what no workflow has heard of, or what one should be serving and isn't there."""
        async with self._database.transaction() as session:
            unheard = await dev_servers.unobserved(session, older_than_s=request.grace_s, limit=_AT_MOST)
            moving = await dev_servers.in_motion(session, older_than_s=request.grace_s, limit=_AT_MOST)
        lost = {standing.ref.project_id: standing for standing in unheard}
        for standing in moving:
            if not await self._runs(dev_server_id(standing.ref.project_id)):
                lost[standing.ref.project_id] = standing
        if not request.dry_run:
            for standing in lost.values():
                await self._resend(standing)
        return sorted(lost)

    async def _resend(self, standing: StandingCommand) -> None:
        server = DevServerInput(
            user_id=standing.ref.user_id,
            project_id=standing.ref.project_id,
            start_timeout_s=self._start_timeout_s,
            idle_grace_s=self._idle_grace_s,
        )
        await command_dev_server(self._client, server, standing.command)
        log.warning("reconcile.command_resent", project_id=standing.ref.project_id, action=standing.command.action)

    async def _onboard(self, request: ReconcileInput) -> list[int]:
        """Start the onboarding of users whose key isn't what their row says; one that runs goes on."""
        if self._key_secrets is None:
            return []
        async with self._database.transaction() as session:
            if not request.dry_run:
                await model_keys.close_anew(session, self._key_secrets, limit=_AT_MOST)
            waiting = await model_keys.users_to_onboard(session, limit=_AT_MOST)
        lost = [user_id for user_id in waiting if not await self._runs(onboard_user_id(user_id))]
        if not request.dry_run:
            for user_id in lost:
                await start_onboard_user(self._client, OnboardInput(user_id=user_id))
        return lost

    async def _offboard(self, request: ReconcileInput) -> list[int]:
        """Start the deletion of users who are leaving, where none runs."""
        async with self._database.transaction() as session:
            leaving = await users.leaving(session, limit=_AT_MOST)
        lost = [user_id for user_id in leaving if not await self._runs(offboard_user_id(user_id))]
        if not request.dry_run:
            for user_id in lost:
                await start_offboard_user(self._client, OffboardInput(user_id=user_id))
        return lost

    async def _runs(self, workflow_id: str) -> bool:
        try:
            description = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise
        return description.status == WorkflowExecutionStatus.RUNNING

    # --- containers that no row wants ---

    @activity.defn(name="sweep_containers")
    async def sweep_containers(self, request: ReconcileInput) -> ReconcileReport:
        """See `ReconcileActivities`."""
        orphans: list[int] = []
        strays: list[int] = []
        async with working():
            settled = datetime.now(UTC) - timedelta(seconds=request.grace_s)
            for container in await self._runtime.discover():
                if container.started_at is not None and container.started_at > settled:
                    continue
                if await self._is_orphan(container.ref):
                    orphans.append(container.ref.project_id)
                    if not request.dry_run:
                        await self._runtime.remove(container.ref)
                        await self._runtime.remove_user(container.ref.user_id)
                elif await self._is_stray(container, settled):
                    strays.append(container.ref.project_id)
                    if not request.dry_run:
                        await self._runtime.stop(container.ref)
        if orphans or strays:
            log.warning("reconcile.swept", orphans=orphans, strays=strays, dry_run=request.dry_run)
        return ReconcileReport(orphans=sorted(orphans), strays=sorted(strays))

    async def _is_orphan(self, ref: ProjectRef) -> bool:
        """Whether the project is gone. A row is committed before its container is made, and removed after it."""
        async with self._database.transaction() as session:
            project = await projects.get(session, ref.project_id)
        return project is None or project.user_id != ref.user_id

    async def _is_stray(self, container: ContainerStatus, settled: datetime) -> bool:
        """Whether it runs, or holds what it ran in, though its row has said for long that it doesn't run, and nobody
        is at it.
        """
        if container.state != ContainerState.RUNNING and not container.lingering:
            return False
        async with self._database.transaction() as session:
            server = await dev_servers.get(session, container.ref.project_id)
        if server is None or server.state not in _DOWN or server.since > settled:
            return False
        return not await self._runs(dev_server_id(container.ref.project_id))

    # --- rows that have expired ---

    @activity.defn(name="prune_rows")
    async def prune_rows(self, request: ReconcileInput) -> ReconcileReport:
        """See `ReconcileActivities`."""
        if request.dry_run:
            return ReconcileReport()
        async with self._database.transaction() as session:
            return ReconcileReport(expired_rows=await expiry.prune(session))
