"""`DevServer`: the entity that lives as long as a project's dev server does, and the only writer of its container.

Commands are numbered by the database (`generation`); the highest wins, whatever order signals come in. Whatever it
is doing, a newer command is served next: a start in progress is cancelled for a stop, and a stop is finished before
a start. It ends when the server is stopped or has failed, and nothing newer is known.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import policies
    from workflows.activity_calls import Result, perform
    from workflows.contracts.dev_servers import (
        PROVISIONING,
        SUPERSEDED,
        DevServerAction,
        DevServerActivities,
        DevServerCommand,
        DevServerInput,
        DevServerState,
        DevServerStep,
        ServerExit,
        StateChange,
    )
    from workflows.failures import TIMED_OUT, cause_of, earlier_cause
    from workflows.handover import hand_over, should_hand_over

_PINNED_LOOK = timedelta(minutes=5)
"""How often a server whose lease has no end is looked at: a lease that was given back is noticed this late."""
_PROVISION_LOOK = timedelta(seconds=30)
"""How often a start looks at a provision by itself, should its signal be lost."""
_WATCH_END = timedelta(seconds=10)
"""A worker that died with the watch is noticed within its heartbeat timeout; longer isn't worth waiting for."""
_KILLED_FOR_MEMORY = "It was killed because it used more memory than its limit."


class _Next(StrEnum):
    """What a served command leads to."""

    WATCH = "watch"
    END = "end"


@workflow.defn(name="DevServer", failure_exception_types=policies.PROGRAMMING_ERRORS)
class DevServer:
    """One project's dev server, from its first start until it is stopped, fails, or its project is deleted."""

    @workflow.init
    def __init__(self, server: DevServerInput) -> None:
        self._server = server
        self._command = server.command
        self._running = server.running
        self._served = server.command.generation if server.command and server.running else 0
        self._retiring = False
        self._retired = False
        self._settled = False
        self._exit_watch: asyncio.Task[ServerExit] | None = None
        self._bounds = policies.StartBounds(server.start_timeout_s)
        self._state = DevServerState.RUNNING if server.running else DevServerState.STARTING

    # --- what it is told and asked ---

    @workflow.signal
    def command(self, command: DevServerCommand) -> None:
        """Take a command; an older one than the newest known changes nothing."""
        if self._command is None or command.generation > self._command.generation:
            self._command = command

    @workflow.signal
    def retire(self) -> None:
        """The project is being deleted: remove the container and end."""
        self._retiring = True

    @workflow.signal
    def project_settled(self) -> None:
        """The provision has ended, well or not."""
        self._settled = True

    @workflow.signal
    def look(self) -> None:
        """Another build of the worker is the current one: being woken is all that it takes."""

    @workflow.query
    def status(self) -> str:
        """The state as this workflow sees it, for operators; clients read the row."""
        return self._state

    # --- the entity's life ---

    @workflow.run
    async def run(self, server: DevServerInput) -> None:  # noqa: ARG002 -- taken by __init__
        """Serve commands and watch the server until it is down and nothing newer is known."""
        await workflow.wait_condition(lambda: self._command is not None or self._retiring)
        while True:
            following = await (self._watch() if self._up_to_date() and self._running else self._serve())
            if following is _Next.END and (self._retired or self._up_to_date()):
                return

    def _up_to_date(self) -> bool:
        return not self._retiring and self._command is not None and self._served >= self._command.generation

    async def _serve(self) -> _Next:
        """Serve the newest command, or the retirement."""
        if self._retiring or self._command is None:
            self._running = False
            await self._do(DevServerActivities.retire_dev_server, "remove container", policies.COMPENSATION)
            await self._end_watch()
            self._retired = True
            return _Next.END
        command = self._command
        self._served = command.generation
        if command.action == DevServerAction.STOP:
            return await self._stop(reason=None)
        if command.action == DevServerAction.RESTART and self._running:
            await self._bring_down("stop for a restart")
        if self._running:
            await self._record(DevServerState.RUNNING)
            return _Next.WATCH
        return await self._start()

    # --- starting ---

    async def _start(self) -> _Next:
        """Start, unless a newer command or a deletion makes it pointless: then that is served next."""
        starting = asyncio.create_task(self._bring_up())
        await workflow.wait_condition(lambda: starting.done() or self._start_is_pointless())
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return _Next.END
        return starting.result()

    def _start_is_pointless(self) -> bool:
        return self._retiring or (
            not self._up_to_date() and self._command is not None and self._command.action == DevServerAction.STOP
        )

    def _take_in_newer_starts(self) -> None:
        """A start that came during the start asks for what has just been done."""
        if self._command is not None and self._command.action == DevServerAction.START and not self._retiring:
            self._served = self._command.generation

    async def _bring_up(self) -> _Next:
        late = "It wasn't up"
        try:
            await self._launch()
            late = "It didn't answer over HTTP"
            ended = await self._do(DevServerActivities.probe_dev_server, "wait for HTTP", self._bounds.probe())
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return await self._start_failed(error, late)
        if ended is not None:
            return await self._ended_by_itself(ended)
        self._running = True
        self._take_in_newer_starts()
        await self._record(DevServerState.RUNNING)
        return _Next.WATCH

    async def _launch(self) -> None:
        """Launch, once the project has files: a start may come while it is being provisioned."""
        while True:
            self._settled = False
            try:
                await self._do(DevServerActivities.launch_dev_server, "launch container", self._bounds.launch())
            except ActivityError as error:
                if cause_of(error)[0] != PROVISIONING:
                    raise
            else:
                return
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(lambda: self._settled, timeout=_PROVISION_LOOK)

    async def _start_failed(self, error: ActivityError, late: str) -> _Next:
        """`late`: what has not come true when its time was over."""
        code, detail = cause_of(error)
        if code == SUPERSEDED:
            return _Next.END
        self._take_in_newer_starts()
        if code == TIMED_OUT:
            before = earlier_cause(error)
            detail = (
                f"{late} within {self._server.start_timeout_s:g} s.{f' An earlier try: {before}' if before else ''}"
            )
        await self._give_up()
        await self._record(DevServerState.FAILED, reason=detail, code=code, with_log=code == TIMED_OUT)
        return _Next.END

    async def _give_up(self) -> None:
        """Stop what a failed start has left. The failure is told also where that can't be done now."""
        try:
            await self._do(DevServerActivities.stop_dev_server, "stop what failed", policies.GIVING_UP)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise

    # --- running ---

    async def _watch(self) -> _Next:
        """Until a command comes, the server ends by itself, nobody needs it, or this run makes way for the next."""
        if self._exit_watch is None:
            self._exit_watch = asyncio.create_task(
                self._do(DevServerActivities.watch_dev_server, "watch", policies.WATCH)
            )
        exit_watch = self._exit_watch
        idle_watch = asyncio.create_task(self._until_idle())
        await workflow.wait_condition(
            lambda: exit_watch.done() or idle_watch.done() or not self._up_to_date() or should_hand_over()
        )
        idle = idle_watch.done()
        # Not in a `finally`: nothing may be awaited while a cached workflow is put away.
        idle_watch.cancel()
        await asyncio.gather(idle_watch, return_exceptions=True)
        if not self._up_to_date():
            return _Next.WATCH
        if exit_watch.done():
            self._exit_watch = None
            return await self._ended_by_itself(exit_watch.result())
        if not idle:
            hand_over(self._server.model_copy(update={"command": self._command, "running": True}))
        idle_watch.result()
        return await self._sleep_idle()

    async def _end_watch(self) -> None:
        """The container has just been stopped, so the watch ends by itself; one that doesn't is called off."""
        if self._exit_watch is None:
            return
        exit_watch, self._exit_watch = self._exit_watch, None
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(exit_watch.done, timeout=_WATCH_END)
        exit_watch.cancel()
        await asyncio.gather(exit_watch, return_exceptions=True)

    async def _until_idle(self) -> None:
        """Return when no lease is held, after a warning and its grace."""
        while True:
            remaining = await self._lease_time()
            if remaining > timedelta(0):
                await workflow.sleep(remaining, summary="leases")
                continue
            grace = timedelta(seconds=self._server.idle_grace_s)
            await self._record(
                DevServerState.RUNNING, reason=f"Nobody uses it: it sleeps in {grace.total_seconds():g} s."
            )
            await workflow.sleep(grace, summary="idle grace")
            if await self._lease_time() <= timedelta(0):
                return
            await self._record(DevServerState.RUNNING)

    async def _lease_time(self) -> timedelta:
        """How long the longest lease still lasts; zero or less when none is held."""
        verdict = await self._do(DevServerActivities.read_idleness, "leases", policies.ROW)
        if verdict.pinned:
            return _PINNED_LOOK
        if verdict.expires_at is None:
            return timedelta(0)
        return verdict.expires_at - verdict.now

    async def _sleep_idle(self) -> _Next:
        """Stop for idleness, unless a command was accepted at this very moment."""
        if not await self._record(DevServerState.STOPPING, reason="idle"):
            return _Next.WATCH
        return await self._stop(reason="idle")

    # --- ending ---

    async def _stop(self, reason: str | None) -> _Next:
        self._state = DevServerState.STOPPING
        await self._bring_down("stop container")
        await self._record(DevServerState.STOPPED, reason=reason)
        return _Next.END

    async def _bring_down(self, summary: str) -> None:
        self._running = False
        await self._do(DevServerActivities.stop_dev_server, summary, policies.STOP)
        await self._end_watch()

    async def _ended_by_itself(self, ended: ServerExit) -> _Next:
        self._running = False
        self._take_in_newer_starts()
        if ended.out_of_memory:
            code, reason = "out_of_memory", _KILLED_FOR_MEMORY
        elif ended.exit_code is None:
            code, reason = "vanished", "Its container was removed from outside."
        else:
            code, reason = "crashed", f"The command ended with exit code {ended.exit_code}."
        await self._record(DevServerState.FAILED, reason=reason, code=code, exit_code=ended.exit_code, with_log=True)
        return _Next.END

    # --- small words ---

    def _step(self) -> DevServerStep:
        return DevServerStep(user_id=self._server.user_id, project_id=self._server.project_id, generation=self._served)

    async def _do(
        self,
        activity: Callable[[Any, DevServerStep], Awaitable[Result]],
        summary: str,
        policy: workflow.ActivityConfig,
    ) -> Result:
        return await perform(activity, self._step(), policy, summary)

    async def _record(
        self,
        state: DevServerState,
        *,
        reason: str | None = None,
        code: str | None = None,
        exit_code: int | None = None,
        with_log: bool = False,
    ) -> bool:
        """Write the transition down. False when a newer command has been accepted: its signal is on its way."""
        self._state = state
        change = StateChange(
            step=self._step(), state=state, reason=reason, code=code, exit_code=exit_code, with_log=with_log
        )
        return await perform(DevServerActivities.record_dev_server, change, policies.ROW, state)
