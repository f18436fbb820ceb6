"""What the cluster's objects are taken to mean, for what a real one shows too seldom or too briefly."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from activities.errors import ImageMissingError, ResourcesExhaustedError, RuntimeUnavailableError, SpecInvalidError
from activities.ports import ContainerState
from activities.runtimes.kubernetes_client import Object
from activities.runtimes.kubernetes_faults import RefusedError
from activities.runtimes.kubernetes_logs import Logs
from activities.runtimes.kubernetes_spec import END_ANNOTATION
from activities.runtimes.kubernetes_status import View, end_of, is_over, obstacle_of, to_status, view_of
from workflows.contracts.names import ProjectRef

REF = ProjectRef(7, 12)
DEPLOYMENT: Object = {
    "metadata": {"name": "dev-user7-project12", "uid": "d", "labels": {"studio.user": "7", "studio.project": "12"}},
    "spec": {"replicas": 1},
}


def pod(state: dict[str, Any], *, leaving: bool = False, phase: str = "Running", **container: Any) -> Object:
    metadata = {"name": "p", "uid": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:01Z"
    status = {
        "phase": phase,
        "podIP": "10.0.0.9",
        "containerStatuses": [{"name": "server", "state": state, **container}],
    }
    return {"metadata": metadata, "status": status, "spec": {"containers": [{"ports": [{"containerPort": 8000}]}]}}


@pytest.mark.parametrize(
    ("reason", "message", "error", "passes"),
    [
        ("ErrImageNeverPull", "", ImageMissingError, False),
        ("CreateContainerError", "context deadline exceeded", RuntimeUnavailableError, True),
        ("CreateContainerError", "write: no space left on device", ResourcesExhaustedError, False),
        ("CreateContainerConfigError", "image will run as root", SpecInvalidError, False),
    ],
)
def test_a_waiting_container_says_why(reason: str, message: str, error: type[Exception], passes: bool) -> None:
    obstacle = obstacle_of(View(DEPLOYMENT, (pod({"waiting": {"reason": reason, "message": message}}),)))
    assert obstacle is not None
    assert (type(obstacle.fault), obstacle.passes) == (error, passes)


def test_a_container_that_was_begun_again_has_ended() -> None:
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "startedAt": "2026-01-01T00:00:00Z"}}
    status = to_status(View(DEPLOYMENT, (pod({"running": {}}, restartCount=1, lastState=ended),)))
    assert status is not None
    assert (status.state, status.exit_code, status.out_of_memory) == (ContainerState.EXITED, 137, True)
    assert status.address is None
    assert status.lingering


def stopped(end: str | None) -> View:
    annotations = {} if end is None else {END_ANNOTATION: end}
    return View(
        DEPLOYMENT | {"metadata": DEPLOYMENT["metadata"] | {"annotations": annotations}, "spec": {"replicas": 0}}
    )


@pytest.mark.parametrize("reason", ["OOMKilled", "Error"])
def test_an_end_that_was_written_down_reads_as_it_was_told(reason: str) -> None:
    told = {"exitCode": 137, "reason": reason, "startedAt": "2026-01-01T00:00:00Z", "containerID": "x", "signal": None}
    standing = View(DEPLOYMENT, (pod({"terminated": told}),))
    end = end_of(standing)
    assert end is not None
    before, after = to_status(standing), to_status(stopped(end))
    assert before is not None
    assert after == replace(before, lingering=False)
    assert (after.exit_code, after.out_of_memory) == (137, reason == "OOMKilled")
    assert end_of(stopped(end)) is None


@pytest.mark.parametrize(
    "end", [None, "", "no JSON", "[]", "7", '{"exitCode": "5"}', '{"startedAt": "soon"}', '{"startedAt": 5}']
)
def test_an_end_that_nobody_or_somebody_else_wrote_is_none(end: str | None) -> None:
    status = to_status(stopped(end))
    assert status is not None
    assert (status.state, status.exit_code, status.started_at) == (ContainerState.EXITED, None, None)


def test_a_server_that_runs_or_is_on_its_way_has_no_end() -> None:
    for pods in ((), (pod({"running": {}}),), (pod({"waiting": {}}),), (pod({"terminated": {}}, leaving=True),)):
        assert end_of(View(DEPLOYMENT, pods)) is None


def test_a_pod_that_was_given_up_doesnt_count() -> None:
    status = to_status(view_of(DEPLOYMENT, [pod({"running": {}}, phase="Failed")]))
    assert status is not None
    assert status.state is ContainerState.CREATED


def test_a_pod_on_its_way_out_is_over_when_nothing_runs() -> None:
    assert not is_over(pod({"running": {}}, leaving=True))
    assert not is_over(pod({"waiting": {}}, leaving=True, phase="Pending"))
    assert not is_over(pod({"terminated": {}}))
    assert is_over(pod({"terminated": {}}, leaving=True))


class SweptNode:
    """A node that has removed what is left of containers, and says so where a log belongs."""

    async def log(self, name: str, query: Sequence[tuple[str, str]], *, follow: bool) -> AsyncIterator[bytes]:
        if ("previous", "true") in query:
            raise RefusedError(400, "previous terminated container not found")
        yield b"unable to retrieve container logs for docker://abc"


class Standing:
    """A project that stays as it is."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def look(self, ref: ProjectRef) -> View:
        return self._view


class Ending(Standing):
    """A server that was seen running, and has ended and parked since."""

    def __init__(self) -> None:
        parked = pod({"running": {}}, restartCount=1, lastState={"terminated": {"exitCode": 3}})
        super().__init__(View(DEPLOYMENT, (parked,)))
        self._seen = False

    async def look(self, ref: ProjectRef) -> View:
        if self._seen:
            return await super().look(ref)
        self._seen = True
        return View(DEPLOYMENT, (pod({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),))

    async def until(self, ref: ProjectRef, condition: Callable[[View], bool], within_s: float | None) -> bool:
        return condition(self._view)


class EndlessNode:
    """Follows a log and never comes to its end: the parked container's (which has none), or one that it lags behind."""

    def __init__(self, *late: bytes) -> None:
        self._late = late

    async def log(self, name: str, query: Sequence[tuple[str, str]], *, follow: bool) -> AsyncIterator[bytes]:
        if not follow:
            yield b"one\n" if ("previous", "true") in query else b""
            return
        for piece in self._late:
            await asyncio.sleep(0.02)
            yield piece
        await asyncio.Event().wait()


@pytest.mark.parametrize("late", [(), (b"one\n",)])
async def test_a_follower_leaves_when_the_server_has_ended(
    late: tuple[bytes, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.runtimes.kubernetes_logs._LAST_S", 0.5)
    logs = Logs(EndlessNode(*late), Ending(), tmp_path)  # type: ignore[arg-type]  # the calls that it needs
    async with asyncio.timeout(30):
        assert [piece async for piece in logs.read(REF, tail=5, follow=True)] == [b"one\n"]


async def test_a_log_that_was_swept_up_is_read_from_what_was_kept(tmp_path: Path) -> None:
    ended = View(DEPLOYMENT, (pod({"terminated": {"exitCode": 3}}),))
    logs = Logs(SweptNode(), Standing(ended), tmp_path)  # type: ignore[arg-type]  # the two calls that it needs
    assert [piece async for piece in logs.read(REF, tail=5, follow=False)] == []
    logs._write(REF, b"one\ntwo\n")
    assert await logs.keep(REF, ended)
    assert [piece async for piece in logs.read(REF, tail=1, follow=True)] == [b"two\n"]
    await logs.forget(REF)
    assert [piece async for piece in logs.read(REF, tail=5, follow=False)] == []
