"""The worker's process: runs workflows and activities from the one task queue. `python -m workers.worker`."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import structlog
import uvloop
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.agent_tasks import AgentTasks
from activities.dev_servers import DevServers, DevServerSettings
from activities.offboarding import Offboarding
from activities.onboarding import Onboarding
from activities.projects import Projects
from activities.reconcile import Reconciliation
from api.log import configure_logging
from workers.agent_tasks import open_agent_tasks
from workers.deployment import WorkerDeployment, deployment_config
from workers.engine_relay import engine_relays
from workers.leaving import await_handover, await_release, giving_up
from workers.secrecy import keep_to_itself
from workers.settings import ServiceSettings, load_service_settings
from workers.templates import template_folders
from workers.wiring import Foundation, dev_server_limits, open_foundation, revealed
from workflows.agent_task import AgentTask
from workflows.contracts.names import RECONCILE_ID, TASK_QUEUE
from workflows.contracts.reconcile import ReconcileInput
from workflows.delete_project import DeleteProject
from workflows.dev_server import DevServer
from workflows.offboard_user import OffboardUser
from workflows.onboard_user import OnboardUser
from workflows.policies import HEARTBEAT_THROTTLE, STICKY_TIMEOUT
from workflows.provision_project import ProvisionProject
from workflows.reconcile import Reconcile

log = structlog.get_logger("worker")

WORKFLOWS = (ProvisionProject, DevServer, AgentTask, DeleteProject, OnboardUser, OffboardUser, Reconcile)

_RECONCILE_LIMIT = timedelta(minutes=10)
"""A pass that hangs makes way for the next one."""
_ACTIVITY_MARK = "__temporal_activity_definition"
"""What `@activity.defn` leaves on a method."""
_MAX_ACTIVITIES = 1000
"""Each running dev server holds one for its watch."""
_TOUCH_S = 5.0
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0


async def run(settings: ServiceSettings, stop: asyncio.Event) -> None:
    """Work until `stop` is set; waits for Postgres and Temporal as long as it takes.

    A worker with a build id is ready once its build is the current one, and leaves when nothing runs on it.
    """
    _forget(settings.ready_file)  # of a process before this one, in the same container
    async with engine_relays(settings), open_foundation(settings) as foundation:
        client = await connect(settings, stop)
        if client is None:
            return
        async with (
            open_agent_tasks(client, foundation, settings) as agent_tasks,
            make_worker(client, foundation, settings, agent_tasks),
        ):
            await _begin(client, settings, stop)
            await schedule_reconcile(client, every_s=settings.reconcile_interval_s, grace_s=settings.reconcile_grace_s)
            async with _ready(settings.ready_file):
                log.info("worker.ready", task_queue=TASK_QUEUE, runtime=foundation.runtime.name)
                await stop.wait()
                log.info("worker.stopping")
                await _leave(client, settings)


async def connect(settings: ServiceSettings, stop: asyncio.Event) -> Client | None:
    """A client once Temporal answers and has the namespace; None when `stop` came first."""
    delay = _FIRST_DELAY_S
    while not stop.is_set():
        try:
            client = await Client.connect(
                settings.temporal_address,
                namespace=settings.temporal_namespace,
                api_key=revealed(settings.temporal_api_key),
                tls=settings.temporal_encrypted,
                data_converter=pydantic_data_converter,
            )
            await client.count_workflows()
        except (RPCError, RuntimeError) as error:
            log.warning("worker.temporal_away", address=settings.temporal_address, reason=str(error)[:200])
        else:
            return client
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY_S)
    return None


def make_worker(client: Client, foundation: Foundation, settings: ServiceSettings, agent_tasks: AgentTasks) -> Worker:
    """The worker with every workflow and every activity, each given what it needs."""
    database, files, runtime = foundation.database, foundation.files, foundation.runtime
    projects = Projects(database, files, runtime, client, template_folders())
    servers = DevServers(
        database,
        files,
        runtime,
        foundation.secrets,
        DevServerSettings(idle_timeout_s=settings.idle_timeout_s, limits=dev_server_limits(settings)),
    )
    reconciliation = Reconciliation(
        database,
        runtime,
        client,
        start_timeout_s=settings.start_timeout_s,
        idle_grace_s=settings.idle_grace_s,
        key_secrets=foundation.secrets if foundation.model_keys else None,
        monthly_usd=settings.user_monthly_budget_usd,
    )
    onboarding = Onboarding(
        database, foundation.model_keys, foundation.secrets, default_budget_usd=settings.user_monthly_budget_usd
    )
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=WORKFLOWS,
        activities=[
            *activities_of(projects),
            *activities_of(servers),
            *activities_of(agent_tasks),
            *activities_of(onboarding),
            *activities_of(Offboarding(database, client)),
            *activities_of(reconciliation),
        ],
        workflow_runner=workflow_runner(),
        max_concurrent_activities=_MAX_ACTIVITIES,
        sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=timedelta(seconds=settings.worker_grace_s),
        deployment_config=_deployment_config(settings),
        on_fatal_error=giving_up(settings.worker_grace_s),
    )


def workflow_runner() -> SandboxedWorkflowRunner:
    """The sandbox that workflows run in. Contracts pass through: importing them anew costs 50 ms and 0.9 MB a run."""
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules("workflows", "pydantic")
    )


def activities_of(owner: object) -> list[Callable[..., object]]:
    """The bound methods of `owner` that are activities."""
    names = (name for name in dir(type(owner)) if hasattr(getattr(type(owner), name), _ACTIVITY_MARK))
    return [getattr(owner, name) for name in names]


async def schedule_reconcile(client: Client, *, every_s: int, grace_s: int) -> None:
    """Have exactly one schedule, as it is written here; one that an older release made is changed."""
    every = timedelta(seconds=every_s)
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            Reconcile.run,
            ReconcileInput(grace_s=grace_s),
            id=RECONCILE_ID,
            task_queue=TASK_QUEUE,
            execution_timeout=_RECONCILE_LIMIT,
            static_summary="Compares rows, workflows and containers, and mends what differs",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=every),
    )

    def replace(_: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(schedule)

    try:
        await client.create_schedule(RECONCILE_ID, schedule)
    except ScheduleAlreadyRunningError:
        await client.get_schedule_handle(RECONCILE_ID).update(replace)


def _deployment_config(settings: ServiceSettings) -> WorkerDeploymentConfig | None:
    if settings.worker_build_id is None:
        return None
    return deployment_config(settings.worker_deployment, settings.worker_build_id)


async def _begin(client: Client, settings: ServiceSettings, stop: asyncio.Event) -> None:
    """Wait for the release of this worker's build, where it has one."""
    if settings.worker_build_id is not None:
        deployment = WorkerDeployment(client, settings.worker_deployment)
        await await_release(deployment, settings.worker_build_id, stop)


async def _leave(client: Client, settings: ServiceSettings) -> None:
    """Stay for what runs on this worker's build alone, where it has one."""
    if settings.worker_build_id is not None:
        deployment = WorkerDeployment(client, settings.worker_deployment)
        await await_handover(deployment, settings.worker_build_id, settings.worker_drain_s)


@asynccontextmanager
async def _ready(path: Path | None) -> AsyncIterator[None]:
    """Keep the ready file while it works: its text is the process id, its age tells whether the loop still turns."""
    if path is None:
        yield
        return
    _note_ready(path)
    touching = asyncio.create_task(_touch(path), name="ready file")
    try:
        yield
    finally:
        touching.cancel()
        _forget(path)


def _note_ready(path: Path) -> None:
    path.write_text(f"{os.getpid()}\n")


def _forget(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)


async def _touch(path: Path) -> None:
    while True:
        await asyncio.sleep(_TOUCH_S)
        os.utime(path)


async def _main(settings: ServiceSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(settings, stop)


def main() -> None:
    """Work until SIGTERM or SIGINT."""
    keep_to_itself()
    settings = load_service_settings()
    configure_logging(json_lines=not sys.stderr.isatty(), level=settings.log_level.number)
    gc.freeze()  # modules stay: going through them all, every 3 s at 200 streams, would halt each for 0.2 s
    uvloop.run(_main(settings))


if __name__ == "__main__":
    main()
