"""A project's dev server in the hands of its agent: the same commands as its owner's, and what came of them."""

import asyncio
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.client import Client
from temporalio.service import RPCError

from activities.tools.tool import CallNotes, DevServerControl, DevServerView, ToolFailure
from storage import dev_server_commands, dev_servers, projects
from storage.dev_servers import DevServerRecord
from storage.engine import Database
from workflows.contracts.dev_servers import DevServerAction, DevServerCommand, DevServerInput, DevServerState
from workflows.contracts.errors import NotFoundError
from workflows.contracts.names import ProjectRef
from workflows.contracts.starts import command_dev_server

log = structlog.get_logger()

_LOOK_S: Final = 0.3
_MARGIN_S: Final = 30.0
"""A start's own bound ends it with a reason; the wait for it is a little longer, to hear that reason."""
_SETTLED: Final = {DevServerState.RUNNING, DevServerState.FAILED, DevServerState.STOPPED}
_AFTER: Final = "after"


class DevServerControls:
    """Makes the control of each project's dev server. `start_timeout_s`, `idle_grace_s`: the service's settings."""

    def __init__(self, database: Database, client: Client, *, start_timeout_s: float, idle_grace_s: float) -> None:
        self.database = database
        self.client = client
        self.start_timeout_s = start_timeout_s
        self.idle_grace_s = idle_grace_s

    def of(self, ref: ProjectRef) -> "ProjectDevServer":
        """The control of one project's dev server."""
        return ProjectDevServer(self, ref)


class ProjectDevServer(DevServerControl):
    """Commands are rows first, then a signal; a signal that is lost is sent again by `Reconcile`.

    Waits end with the server running, failed or asleep; with a `ToolFailure` when somebody stops it meanwhile, and
    when a start takes longer than its own bound. Raises `NotFoundError` when the project is gone, `ConflictError` when
    it can't run.
    """

    def __init__(self, controls: DevServerControls, ref: ProjectRef) -> None:
        self._controls = controls
        self._database = controls.database
        self._ref = ref

    async def view(self) -> DevServerView:
        """See `DevServerControl`."""
        return _view(await self._read())

    async def start(self) -> DevServerView:
        """See `DevServerControl`. One that is starting is waited for; no second start is asked for."""
        generation = await self.wake()
        return await self.view() if generation is None else await self._settled(generation)

    async def wake(self) -> int | None:
        """Ask for a start unless it runs or starts already, and don't wait for it. The start's generation; None: it
        runs.
        """
        async with self._database.transaction() as session:
            server = await self._locked(session)
            if server.state == DevServerState.RUNNING:
                return None
            if server.state == DevServerState.STARTING:
                return server.generation
            accepted = await dev_server_commands.accept(session, self._ref.project_id, DevServerAction.START)
        await self._signal(accepted.command)
        return accepted.command.generation

    async def restart(self, notes: CallNotes) -> DevServerView:
        """See `DevServerControl`.

        What is noted is the generation before: under the project's lock, a restart above it is this call's own, or
        another's that does as well, so that a second attempt, even at the same moment, doesn't restart twice. On such
        an attempt a server that somebody has stopped meanwhile stays stopped.
        """
        intent = await notes.intent()
        if intent is None:
            intent = {_AFTER: (await self._read()).generation}
            await notes.note_intent(intent)
        async with self._database.transaction() as session:
            command = await self._restart_once(session, int(intent[_AFTER]))
        await self._signal(command)
        return await self._settled(command.generation)

    async def _restart_once(self, session: AsyncSession, after: int) -> DevServerCommand:
        server = await self._locked(session)
        done = await dev_server_commands.restarted_after(session, self._ref.project_id, after)
        if done is not None:
            return DevServerCommand(generation=done, action=DevServerAction.RESTART)
        if server.generation > after and server.action == DevServerAction.STOP:
            raise _stopped_meanwhile()
        accepted = await dev_server_commands.accept(session, self._ref.project_id, DevServerAction.RESTART)
        return accepted.command

    async def _locked(self, session: AsyncSession) -> DevServerRecord:
        await projects.lock(session, self._ref.project_id)
        return _present(await dev_servers.get(session, self._ref.project_id))

    async def _read(self) -> DevServerRecord:
        async with self._database.reading() as session:
            return _present(await dev_servers.get(session, self._ref.project_id))

    async def _signal(self, command: DevServerCommand) -> None:
        """Tell the workflow; an old command told again changes nothing there."""
        server = DevServerInput(
            user_id=self._ref.user_id,
            project_id=self._ref.project_id,
            start_timeout_s=self._controls.start_timeout_s,
            idle_grace_s=self._controls.idle_grace_s,
        )
        try:
            await command_dev_server(self._controls.client, server, command)
        except RPCError as error:
            log.warning("dev_server.signal_delayed", project_id=self._ref.project_id, error=error.status.name)

    async def _settled(self, generation: int) -> DevServerView:
        """How the server stands once the command, or a later start that took it in, has been served."""
        bound = self._controls.start_timeout_s + _MARGIN_S
        try:
            async with asyncio.timeout(bound):
                while True:
                    server = await self._read()
                    if server.generation > generation and server.action == DevServerAction.STOP:
                        raise _stopped_meanwhile()
                    if server.observed_generation >= generation and server.state in _SETTLED:
                        return _view(server)
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise ToolFailure(
                f"The dev server has neither started nor failed within {bound:g} s. Look again later."
            ) from None


def _present(server: DevServerRecord | None) -> DevServerRecord:
    if server is None:
        raise NotFoundError("The project is gone.")
    return server


def _view(server: DevServerRecord) -> DevServerView:
    return DevServerView(server.state, server.reason, server.exit_code, server.log_tail)


def _stopped_meanwhile() -> ToolFailure:
    return ToolFailure(
        "The dev server was stopped meanwhile by somebody else, and was left so. Start it only if the task needs it."
    )
