"""How each workflow is started, in one place: id, conflict policy, search attributes, what operators read.

Every call is safe to repeat: the id follows from the row that was committed before, so a second start finds the
first. Raises `temporalio.service.RPCError` when the server doesn't answer within `timeout`.
"""

from datetime import timedelta
from uuid import uuid4

from temporalio.client import Client
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.service import RPCError, RPCStatusCode

from workflows.contracts.agent_tasks import AgentTaskInput
from workflows.contracts.dev_servers import DevServerCommand, DevServerInput
from workflows.contracts.names import (
    RECONCILE_ID,
    TASK_QUEUE,
    ProjectRef,
    agent_task_id,
    delete_project_id,
    dev_server_id,
    offboard_user_id,
    onboard_user_id,
    provision_project_id,
)
from workflows.contracts.offboarding import OffboardInput
from workflows.contracts.onboarding import OnboardInput
from workflows.contracts.projects import ProjectInput
from workflows.contracts.reconcile import ReconcileInput, ReconcileReport

USER_ID = SearchAttributeKey.for_keyword("UserId")
PROJECT_ID = SearchAttributeKey.for_keyword("ProjectId")
TASK_STATE = SearchAttributeKey.for_keyword("TaskState")

RPC_TIMEOUT = timedelta(seconds=4)
"""A request that waits longer for Temporal is answered 503; the row stands, and `Reconcile` starts the work."""


RECONCILE_LIMIT = timedelta(seconds=60)
"""An operator waits for a sweep no longer; what it didn't reach, the schedule does."""


def project_attributes(ref: ProjectRef) -> TypedSearchAttributes:
    """Search attributes of every workflow that belongs to a project."""
    return TypedSearchAttributes(
        [SearchAttributePair(USER_ID, str(ref.user_id)), SearchAttributePair(PROJECT_ID, str(ref.project_id))]
    )


async def start_provision_project(client: Client, project: ProjectInput) -> None:
    """Start `ProvisionProject` unless it runs or has run."""
    await _start_project_workflow(client, "ProvisionProject", provision_project_id(project.project_id), project)


async def start_delete_project(client: Client, project: ProjectInput) -> None:
    """Start `DeleteProject` unless it runs; a failed one is run again."""
    await _start_project_workflow(client, "DeleteProject", delete_project_id(project.project_id), project)


async def _start_project_workflow(client: Client, name: str, workflow_id: str, project: ProjectInput) -> None:
    await client.start_workflow(
        name,
        project,
        id=workflow_id,
        task_queue=TASK_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        search_attributes=project_attributes(project.ref),
        static_summary=f"{name} {project.project_id} of user {project.user_id}",
        rpc_timeout=RPC_TIMEOUT,
    )


async def run_reconcile(client: Client, request: ReconcileInput) -> ReconcileReport:
    """Run one `Reconcile` now, beside the schedule, and return its report. Ends within `RECONCILE_LIMIT`."""
    report: ReconcileReport = await client.execute_workflow(
        "Reconcile",
        request,
        id=f"{RECONCILE_ID}-by-hand-{uuid4()}",
        task_queue=TASK_QUEUE,
        result_type=ReconcileReport,
        execution_timeout=RECONCILE_LIMIT,
        static_summary="A sweep that an operator asked for" + (", as a dry run" if request.dry_run else ""),
    )
    return report


async def command_dev_server(client: Client, server: DevServerInput, command: DevServerCommand) -> None:
    """Hand the command to the project's `DevServer`, starting it when it doesn't live.

    A signal-with-start, not an update: Temporal accepts it durably while no worker is there, so a start during a
    worker's death is kept, not refused.
    """
    await client.start_workflow(
        "DevServer",
        server,
        id=dev_server_id(server.project_id),
        task_queue=TASK_QUEUE,
        start_signal="command",
        start_signal_args=[command],
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        search_attributes=project_attributes(server.ref),
        static_summary=f"Dev server of project {server.project_id}, user {server.user_id}",
        rpc_timeout=RPC_TIMEOUT,
    )


async def start_onboard_user(client: Client, user: OnboardInput, *, changed: bool = False) -> None:
    """Start `OnboardUser` unless it runs. `changed`: the user's row has; one that runs looks at it again."""
    await client.start_workflow(
        "OnboardUser",
        user,
        id=onboard_user_id(user.user_id),
        task_queue=TASK_QUEUE,
        start_signal="look" if changed else None,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        search_attributes=TypedSearchAttributes([SearchAttributePair(USER_ID, str(user.user_id))]),
        static_summary=f"Key of user {user.user_id} at the proxy of language models",
        rpc_timeout=RPC_TIMEOUT,
    )


async def start_offboard_user(client: Client, user: OffboardInput) -> None:
    """Start `OffboardUser` unless it runs; a failed one is run again."""
    await client.start_workflow(
        "OffboardUser",
        user,
        id=offboard_user_id(user.user_id),
        task_queue=TASK_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        search_attributes=TypedSearchAttributes([SearchAttributePair(USER_ID, str(user.user_id))]),
        static_summary=f"Deletion of user {user.user_id}",
        rpc_timeout=RPC_TIMEOUT,
    )


async def start_agent_task(client: Client, task: AgentTaskInput) -> None:
    """Start the task's workflow unless it runs; one that was lost begins again where its rows say."""
    await client.start_workflow(
        "AgentTask",
        task,
        id=agent_task_id(task.task_id),
        task_queue=TASK_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        search_attributes=project_attributes(task.ref),
        static_summary=f"Task of project {task.project_id}, user {task.user_id}",
        rpc_timeout=RPC_TIMEOUT,
    )


async def nudge_agent_task(client: Client, task_id: str) -> None:
    """Have the task look at its rows: something that it may wait for has been committed. Not running is success."""
    await _signal_agent_task(client, task_id, "look")


async def cancel_agent_task(client: Client, task_id: str) -> None:
    """Tell the task that its row asks for a cancellation. Not running is success."""
    await _signal_agent_task(client, task_id, "cancel")


async def _signal_agent_task(client: Client, task_id: str, signal: str) -> None:
    try:
        await client.get_workflow_handle(agent_task_id(task_id)).signal(signal, rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
