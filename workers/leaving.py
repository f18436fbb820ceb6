"""How a worker of one build comes and goes while another build takes over: nothing that began on it is left behind."""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from temporalio.service import RPCError, RPCStatusCode

from workers.deployment import RunningWorkflow, WorkerDeployment

log = structlog.get_logger("worker")

_LOOK_S = 2.0
_ANSWER = timedelta(seconds=3)
_LONGEST_SLEEP_S = 60.0
_LOOKS_A_ROUND = 10
_UNKNOWN_LOOKS = 3
"""So often Temporal may not answer a leaving worker; then it goes, and those who stay do the rest."""
_EMPTY_LOOKS = 3
"""Lists of workflows are a second late: one that has just begun isn't seen by the first look."""
_WAKEABLE = frozenset({"DevServer", "AgentTask"})
"""Workflows that sleep for hours and know the signal `look`; the others end soon."""


async def await_release(deployment: WorkerDeployment, build_id: str, stop: asyncio.Event) -> None:
    """Return when this build is the current one, or `stop` is set.

    A worker isn't ready before: a rolling update that took its predecessors away now would leave nobody to begin
    anything, silently.
    """
    said = False
    while not stop.is_set():
        try:
            if await deployment.current() == build_id:
                return
            if not said:
                log.info("worker.awaiting_release", build=build_id)
                said = True
        except RPCError as error:
            log.warning("worker.temporal_away", reason=str(error)[:200])
        await _pause(stop)


async def await_handover(deployment: WorkerDeployment, build_id: str, limit_s: float) -> None:
    """Return when nothing runs on this build any more, or it is the current one still, or after `limit_s`.

    A worker that goes while its build is current has successors of its own kind, so it needn't wait. What sleeps is
    woken, so that it hands over to the current build.
    """
    if not await _is_superseded(deployment, build_id):
        return
    try:
        async with asyncio.timeout(limit_s):
            await _hand_over(deployment, build_id)
    except TimeoutError:
        log.warning("worker.left_work_behind", build=build_id, limit_s=limit_s)


def giving_up(limit_s: float) -> Callable[[BaseException], Awaitable[None]]:
    """What a worker does that can't ask for work any more: its process ends within `limit_s`, for another to be begun.

    The library gives up by itself after some time of answers that make no sense, e.g. of a proxy before Temporal. Then
    it waits for activities that it can't reach any more, for ever, in a process that looks well from outside.
    """

    async def give_up(error: BaseException) -> None:
        log.error("worker.failed", reason=str(error)[:500], limit_s=limit_s)
        asyncio.get_running_loop().call_later(limit_s, os._exit, 1)

    return give_up


async def _is_superseded(deployment: WorkerDeployment, build_id: str) -> bool:
    """Whether another build is the current one; False where Temporal doesn't tell in time."""
    for _ in range(_UNKNOWN_LOOKS):
        try:
            return await deployment.current() not in {build_id, None}
        except RPCError as error:
            log.warning("worker.temporal_away", reason=str(error)[:200])
        await asyncio.sleep(_LOOK_S)
    return False


async def _hand_over(deployment: WorkerDeployment, build_id: str) -> None:
    waking = _Waking(deployment)
    empty = 0
    for look in itertools.count():
        try:
            if look % _LOOKS_A_ROUND == 0 and await deployment.current() == build_id:
                return  # the operator has gone back to it
            left = await deployment.running(build_id)
            await waking.wake(left)
        except RPCError as error:
            log.warning("worker.temporal_away", reason=str(error)[:200])
        else:
            log.info("worker.handing_over", build=build_id, left=len(left))
            empty = 0 if left else empty + 1
            if empty == _EMPTY_LOOKS:
                return
        await asyncio.sleep(_LOOK_S)


class _Waking:
    """Sends `look` to what sleeps, more and more seldom: at first the server itself may not know of the new build."""

    def __init__(self, deployment: WorkerDeployment) -> None:
        self._deployment = deployment
        self._due: dict[str, tuple[float, float]] = {}  # run id: when, and how long after that

    async def wake(self, workflows: list[RunningWorkflow]) -> None:
        now = time.monotonic()
        for each in workflows:
            due, pause = self._due.get(each.run_id, (now, _LOOK_S))
            if each.type in _WAKEABLE and due <= now:
                self._due[each.run_id] = (now + pause, min(2 * pause, _LONGEST_SLEEP_S))
                await self._look(each)

    async def _look(self, workflow: RunningWorkflow) -> None:
        try:
            await self._deployment.handle(workflow).signal("look", rpc_timeout=_ANSWER)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:  # it has ended meanwhile
                raise


async def _pause(stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_S):
            await stop.wait()
    except TimeoutError:
        return
