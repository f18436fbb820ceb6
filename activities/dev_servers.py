"""The effects on one dev server: launch, probe, watch, stop, and the rows that tell of it."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.errors import RuntimeFault
from activities.files.start_detection import detect
from activities.ports import (
    ContainerState,
    ContainerStatus,
    DevServerSpec,
    FileChange,
    FileStore,
    ResourceLimits,
    Runtime,
)
from activities.working import working
from storage import dev_servers, environment, event_log, file_events, leases, projects
from storage.dev_servers import DevServerRecord
from storage.engine import Database
from storage.file_events import SeenChange
from storage.secret_box import SecretBox
from workflows.contracts.dev_servers import (
    PROVISIONING,
    SUPERSEDED,
    DevServerAction,
    DevServerActivities,
    DevServerStage,
    DevServerState,
    DevServerStep,
    IdleVerdict,
    LeaseKind,
    ServerExit,
    StateChange,
)
from workflows.contracts.events import EventType, NewEvent
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState

_DOWN: Final = {DevServerState.STOPPED, DevServerState.FAILED}
_FIRST_PROBE_S: Final = 0.02
_LONGEST_PROBE_S: Final = 0.5
_TAIL_LINES: Final = 50
_TAIL_BYTES: Final = 8 * 1024
_TAIL_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class DevServerSettings:
    """Settings of dev servers. `idle_timeout_s`: how long a start keeps a server awake that nobody uses."""

    idle_timeout_s: float = 1800.0
    limits: ResourceLimits = field(default_factory=ResourceLimits)


class DevServers(DevServerActivities):
    """Dev server activities over the runtime, the files and the database."""

    def __init__(
        self,
        database: Database,
        files: FileStore,
        runtime: Runtime,
        secrets: SecretBox,
        settings: DevServerSettings,
    ) -> None:
        self._database = database
        self._files = files
        self._runtime = runtime
        self._secrets = secrets
        self._settings = settings

    # --- starting ---

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        """See `DevServerActivities`."""
        async with working():
            if await self._take_up(step) and await self._is_up(step.ref):
                return  # its workflow was lost, the server wasn't: it is adopted as it is
            async with self._database.transaction() as session:
                await dev_servers.record(session, StateChange(step=step, state=DevServerState.STARTING))
            spec = await self._spec(step.ref)
            await self._runtime.launch(spec, on_stage=lambda stage: self._tell_stage(step, stage))

    async def _take_up(self, step: DevServerStep) -> bool:
        """Whether the row says that the server runs for this command already. Refuses what is no longer wanted."""
        async with self._database.transaction() as session:
            project = await projects.get(session, step.project_id)
            server = await dev_servers.get(session, step.project_id)
        if project is None or server is None or project.state == ProjectState.DELETING:
            raise _final(SUPERSEDED, "The project is being deleted.")
        if server.generation > step.generation and server.action == DevServerAction.STOP:
            raise _final(SUPERSEDED, "A later stop took its place.")
        if _is_late(server, step) or (server.observed_generation == step.generation and server.state in _DOWN):
            raise _final(SUPERSEDED, "This start has had its turn.")
        if project.state == ProjectState.PROVISIONING:
            raise _final(PROVISIONING, "The project is still being provisioned.")
        if project.state == ProjectState.FAILED:
            raise _final("project_failed", "The project could not be provisioned.")
        return server.observed_generation == step.generation and server.state == DevServerState.RUNNING

    async def _is_up(self, ref: ProjectRef) -> bool:
        status = await self._runtime.inspect(ref)
        return status is not None and status.state == ContainerState.RUNNING

    async def _spec(self, ref: ProjectRef) -> DevServerSpec:
        plan = await detect(self._files, ref)
        async with self._database.transaction() as session:
            variables = await environment.values(session, ref.project_id, self._secrets)
        return DevServerSpec(
            ref=ref,
            command=plan.command,
            port=plan.port,
            install=plan.install,
            install_inputs=plan.install_inputs,
            environment=variables,
            limits=self._settings.limits,
        )

    async def _tell_stage(self, step: DevServerStep, stage: str) -> None:
        async with self._database.transaction() as session:
            await dev_servers.set_stage(session, step.project_id, step.generation, stage)

    @activity.defn(name="probe_dev_server")
    async def probe_dev_server(self, step: DevServerStep) -> ServerExit | None:
        """See `DevServerActivities`."""
        async with working():
            await self._tell_stage(step, DevServerStage.PROBING)
            port = (await detect(self._files, step.ref)).port
            ended = asyncio.create_task(self._runtime.wait(step.ref))
            pause = _FIRST_PROBE_S
            try:
                while not ended.done():
                    if await self._runtime.probe(step.ref, port):
                        return None
                    await asyncio.wait([ended], timeout=pause)
                    pause = min(pause * 1.2, _LONGEST_PROBE_S)
                return _exit(ended.result())
            finally:
                ended.cancel()

    # --- running ---

    @activity.defn(name="watch_dev_server")
    async def watch_dev_server(self, step: DevServerStep) -> ServerExit:
        """See `DevServerActivities`."""
        stop = asyncio.Event()
        async with working():
            tell = partial(self._tell_changes, step.ref)
            telling = asyncio.create_task(self._files.watch(step.ref, stop, tell))
            try:
                return _exit(await self._runtime.wait(step.ref))
            finally:
                stop.set()
                telling.cancel()
                await asyncio.wait([telling])

    async def _tell_changes(self, ref: ProjectRef, changes: Sequence[FileChange]) -> None:
        """Tell of file changes made from inside the container, and not again of those that were told of."""
        seen = [SeenChange(change.path, change.op, change.etag) for change in changes]
        async with self._database.transaction() as session:
            news = [
                NewEvent(
                    project_id=ref.project_id,
                    type=EventType.FILE_CHANGED,
                    data={"path": change.path, "op": change.op, "etag": change.etag, "by": "container"},
                )
                for change in await file_events.untold(session, ref.project_id, seen)
            ]
            if news:
                event_log.append(session, news)

    @activity.defn(name="read_idleness")
    async def read_idleness(self, step: DevServerStep) -> IdleVerdict:
        """See `DevServerActivities`."""
        async with self._database.transaction() as session:
            held = await leases.held(session, step.project_id)
        ends = [lease.expires_at for lease in held if lease.expires_at is not None]
        return IdleVerdict(
            now=datetime.now(UTC),
            expires_at=max(ends, default=None),
            pinned=any(lease.expires_at is None for lease in held),
        )

    # --- ending ---

    @activity.defn(name="stop_dev_server")
    async def stop_dev_server(self, step: DevServerStep) -> None:
        """See `DevServerActivities`."""
        async with working():
            async with self._database.transaction() as session:
                server = await dev_servers.get(session, step.project_id)
            if server is None or not _is_late(server, step):
                await self._runtime.stop(step.ref)

    @activity.defn(name="retire_dev_server")
    async def retire_dev_server(self, step: DevServerStep) -> None:
        """See `DevServerActivities`."""
        async with working():
            await self._runtime.remove(step.ref)

    @activity.defn(name="record_dev_server")
    async def record_dev_server(self, change: StateChange) -> bool:
        """See `DevServerActivities`."""
        project_id = change.step.project_id
        tail = await self._log_tail(change.step.ref) if change.with_log else None
        async with self._database.transaction() as session:
            recorded = await dev_servers.record(session, change, tail)
            if recorded and change.state == DevServerState.RUNNING and change.reason is None:
                ttl = self._settings.idle_timeout_s
                await leases.renew(session, project_id, LeaseKind.START, "start", ttl)
        return recorded

    async def _log_tail(self, ref: ProjectRef) -> str:
        """The container's last lines, for the owner; a log that can't be read is no reason to hide a failure."""
        tail = bytearray()
        with contextlib.suppress(RuntimeFault, TimeoutError):
            async with asyncio.timeout(_TAIL_TIMEOUT_S):
                async for piece in self._runtime.logs(ref, tail=_TAIL_LINES):
                    tail += piece
                    del tail[:-_TAIL_BYTES]
        return tail.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _is_late(server: DevServerRecord, step: DevServerStep) -> bool:
    """Whether a later command is being served already: this attempt is of a worker that was thought dead, or of a
    signal that came very late, and must not touch what that command has made.
    """
    return server.observed_generation > step.generation


def _final(code: str, detail: str) -> ApplicationError:
    return ApplicationError(detail, type=code, non_retryable=True)


def _exit(status: ContainerStatus | None) -> ServerExit:
    if status is None:
        return ServerExit(exit_code=None)
    return ServerExit(exit_code=status.exit_code, out_of_memory=status.out_of_memory)
