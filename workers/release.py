"""Make the build of WORKER_BUILD_ID the one that workflows begin on: `python -m workers.release`.

It waits until workers of the build ask for work, makes it the current one, and ends when nothing runs on any other:
their workers hand over what they have. What was left behind by workers that are gone (a node was lost, a time limit
was too short) would wait for ever. It is terminated: the rows tell where it was, and `Reconcile` begins it anew on
the current build. Run twice, it changes nothing; run with an older build, it is the way back.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import structlog
from temporalio.service import RPCError, RPCStatusCode

from api.log import configure_logging
from workers.deployment import RunningWorkflow, WorkerDeployment
from workers.settings import ServiceSettings, load_service_settings
from workers.worker import connect

log = structlog.get_logger("release")

_LOOK_S = 2.0
_COME_LIMIT_S = 600.0
"""Images are fetched and migrations run meanwhile."""
_REASON = "No worker of its build is left; Reconcile begins it anew."


async def release(deployment: WorkerDeployment, build_id: str, *, leave_limit_s: float) -> None:
    """Return when nothing runs but on `build_id`.

    Raises `TimeoutError` when no worker of it came within ten minutes, or when others had more than `leave_limit_s`
    and a minute of grace.
    """
    async with asyncio.timeout(_COME_LIMIT_S):
        await _until(lambda: _told(deployment, build_id))
    log.info("release.current", build=build_id)
    async with asyncio.timeout(leave_limit_s + 60):
        await _until(lambda: _others_have_ended(deployment, build_id))
    log.info("release.complete", build=build_id)


async def _told(deployment: WorkerDeployment, build_id: str) -> bool:
    try:
        return await deployment.make_current(build_id)
    except RPCError as error:
        log.warning("release.temporal_away", reason=str(error)[:200])
        return False


async def _until(done: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await done():
            return
        await asyncio.sleep(_LOOK_S)


async def _others_have_ended(deployment: WorkerDeployment, build_id: str) -> bool:
    try:
        others = [build for build in await deployment.builds() if build != build_id]
        return not any([await _has_work(deployment, build) for build in others])
    except RPCError as error:
        log.warning("release.temporal_away", reason=str(error)[:200])
        return False


async def _has_work(deployment: WorkerDeployment, build_id: str) -> bool:
    left = await deployment.running(build_id)
    if not left or await deployment.works(build_id):
        return bool(left)
    for each in left:
        await _abandon(deployment, each)
    log.warning("release.abandoned", build=build_id, workflows=[each.id for each in left])
    return True


async def _abandon(deployment: WorkerDeployment, workflow: RunningWorkflow) -> None:
    try:
        await deployment.handle(workflow).terminate(reason=_REASON)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise


async def _main(settings: ServiceSettings) -> None:
    if settings.worker_build_id is None:
        sys.exit("WORKER_BUILD_ID isn't set: workers without one need no release.")
    client = await connect(settings, asyncio.Event())
    if client is None:
        return
    deployment = WorkerDeployment(client, settings.worker_deployment)
    try:
        await release(deployment, settings.worker_build_id, leave_limit_s=settings.worker_drain_s)
    except TimeoutError:
        sys.exit(
            f"Build {settings.worker_build_id}: its workers didn't come, or older ones didn't end, in time."
            " The log tells which; run this again."
        )


def main() -> None:
    """Release the build of the settings."""
    settings = load_service_settings()
    configure_logging(json_lines=not sys.stderr.isatty(), level=settings.log_level.number)
    asyncio.run(_main(settings))


if __name__ == "__main__":
    main()
