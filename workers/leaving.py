"""How a worker of one build comes and goes while another build takes over: nothing that began on it is left behind."""

import asyncio

import structlog
from temporalio.service import RPCError, RPCStatusCode

from workers.deployment import RunningWorkflow, WorkerDeployment

log = structlog.get_logger("worker")

_LOOK_S = 2.0
_UNKNOWN_LOOKS = 5
"""So often in a row Temporal may not answer a leaving worker; then it goes, and those who stay do the rest."""
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
    woken once, so that it hands over to the current build.
    """
    woken: set[str] = set()
    unknown = empty = 0
    try:
        async with asyncio.timeout(limit_s):
            while unknown < _UNKNOWN_LOOKS and empty < _EMPTY_LOOKS:
                try:
                    if await deployment.current() in {build_id, None}:
                        return
                    left = await deployment.running(build_id)
                    await _wake(deployment, [each for each in left if each.run_id not in woken])
                except RPCError as error:
                    unknown += 1
                    log.warning("worker.temporal_away", reason=str(error)[:200])
                else:
                    woken.update(each.run_id for each in left)
                    unknown, empty = 0, 0 if left else empty + 1
                    log.info("worker.handing_over", build=build_id, left=len(left))
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        log.warning("worker.left_work_behind", build=build_id, limit_s=limit_s)


async def _wake(deployment: WorkerDeployment, workflows: list[RunningWorkflow]) -> None:
    for each in workflows:
        if each.type not in _WAKEABLE:
            continue
        try:
            await deployment.handle(each).signal("look")
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:  # it has ended meanwhile
                raise


async def _pause(stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_S / 2):
            await stop.wait()
    except TimeoutError:
        return
