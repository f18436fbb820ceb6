"""How a server's end is kept in a cluster: told for as long as the project is there, its pod's memory given back."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from activities.errors import NotRunningError, ResourcesExhaustedError
from activities.ports import ContainerState, ContainerStatus, DevServerSpec, ExecSpec, Runtime
from activities.runtimes.guest import collect
from activities.runtimes.kubernetes_client import Object
from activities.runtimes.kubernetes_objects import ProjectObjects
from activities.runtimes.kubernetes_spec import END_ANNOTATION
from activities.runtimes.open import RuntimeMode
from tests.runtimes.conftest import House, no_stage, spec_of
from tests.runtimes.test_kubernetes import in_namespace, living, within
from tests.runtimes.waiting import until
from workflows.contracts.names import ProjectRef, kubernetes_name

pytestmark = pytest.mark.kubernetes

CRASH = "[ -e mended ] && exec sleep 300; echo last words; exit 5"
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"


@pytest.fixture
def mode() -> RuntimeMode:
    return RuntimeMode.KUBERNETES


async def log_of(runtime: Runtime, ref: ProjectRef) -> bytes:
    return b"".join([piece async for piece in runtime.logs(ref)])


async def started(runtime: Runtime, spec: DevServerSpec) -> ContainerStatus:
    """Started as the service does it: again, while the quota is used up, by a pod that is about to go."""
    found: list[ContainerStatus] = []

    async def launched() -> bool:
        with suppress(ResourcesExhaustedError):
            found.append(await runtime.launch(spec, on_stage=no_stage))
        return bool(found)

    await until(launched, within_s=60)
    return found[0]


def ending(status: ContainerStatus | None) -> Sequence[object]:
    assert status is not None
    return (status.state, status.exit_code, status.out_of_memory, status.lingering)


def written(house: House, ref: ProjectRef) -> str:
    """What the Deployment tells of its server's end."""
    shown = json.loads(in_namespace(house, "get", "deployment", kubernetes_name(ref), "-o", "json"))
    end: str = shown["metadata"]["annotations"][END_ANNOTATION]
    return end


@contextmanager
def room_for_one(house: House) -> Iterator[None]:
    hard = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}}
    in_namespace(house, "apply", "-f", "-", text=json.dumps(hard))
    try:
        yield
    finally:
        in_namespace(house, "delete", "resourcequota", "one")


async def test_a_crashed_server_makes_room_and_its_end_is_told_until_it_is_started_anew(house: House) -> None:
    runtime, other = await house.open(), await house.open()
    crashed, next_one = house.project(), house.project()
    with room_for_one(house):
        await started(runtime, spec_of(crashed, CRASH))
        told = await within(60, asyncio.gather(runtime.wait(crashed), other.wait(crashed)))
        assert [(status.state, status.exit_code) for status in told] == [(ContainerState.EXITED, 5)] * 2
        assert (await started(runtime, spec_of(next_one))).state is ContainerState.RUNNING
        await runtime.remove(next_one)
    later = await house.open()
    for one in (runtime, later):
        assert ending(await one.inspect(crashed)) == (ContainerState.EXITED, 5, False, False)
        assert await log_of(one, crashed) == b"last words\n"
    assert (await within(10, later.wait(crashed))).exit_code == 5
    with pytest.raises(NotRunningError):
        await collect(later.exec(crashed, ExecSpec("true")))
    before = await later.inspect(crashed)
    assert before is not None
    assert before.started_at is not None

    (house.folder(crashed) / "mended").touch()
    status = await later.launch(spec_of(crashed, CRASH), on_stage=no_stage)
    assert (status.id, status.state) == (before.id, ContainerState.RUNNING)
    assert written(house, crashed) == ""
    in_namespace(house, "scale", f"deployment/{kubernetes_name(crashed)}", "--replicas=0")
    assert ending(await within(60, later.wait(crashed))) == (ContainerState.EXITED, None, False, False)
    assert await log_of(later, crashed) == b""


async def test_a_worker_that_dies_over_it_leaves_it_to_the_next(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the log was kept, before the end is written down."""
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, CRASH), on_stage=no_stage)
    kept = asyncio.Event()

    async def never(_: ProjectObjects, __: ProjectRef) -> None:
        kept.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(ProjectObjects, "let_go", never)
        waiting = asyncio.create_task(runtime.wait(ref))
        await within(60, kept.wait())
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert ending(await runtime.inspect(ref)) == (ContainerState.EXITED, 5, False, True)
    later = await house.open()
    assert (await within(60, later.wait(ref))).exit_code == 5
    assert ending(await later.inspect(ref)) == (ContainerState.EXITED, 5, False, False)
    assert await log_of(later, ref) == b"last words\n"


async def test_what_crashed_while_no_worker_ran_is_found_and_let_go(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, CRASH), on_stage=no_stage)

    async def found() -> bool:
        (status,) = await runtime.discover()
        return status.lingering

    await until(found, within_s=60)
    assert living(house, ref)
    await within(60, runtime.stop(ref))  # as the sweep does it
    assert living(house, ref) == set()
    assert ending(await runtime.inspect(ref)) == (ContainerState.EXITED, 5, False, False)
    assert await log_of(runtime, ref) == b"last words\n"


async def test_a_start_at_the_same_moment_wins(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who writes the end down is late: meanwhile the server was started anew."""
    monkeypatch.setattr("activities.runtimes.kubernetes._KEEPING_S", 300.0)
    write, held, go = ProjectObjects._write_end, asyncio.Event(), asyncio.Event()

    async def late(self: ProjectObjects, found: Object, end: str) -> bool:
        if not held.is_set():
            held.set()
            await go.wait()
        return await write(self, found, end)

    monkeypatch.setattr(ProjectObjects, "_write_end", late)
    runtime, other = await house.open(), await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, CRASH), on_stage=no_stage)
    waiting = asyncio.create_task(runtime.wait(ref))
    await within(60, held.wait())
    (house.folder(ref) / "mended").touch()
    await within(90, other.launch(spec_of(ref, CRASH), on_stage=no_stage))
    (server,) = living(house, ref)
    go.set()
    assert ending(await within(60, waiting)) == (ContainerState.EXITED, 5, False, True)
    assert ending(await other.inspect(ref)) == (ContainerState.RUNNING, None, False, False)
    assert living(house, ref) == {server}


@contextmanager
def watched(house: House, ref: ProjectRef, told: Path) -> Iterator[None]:
    """Writes down, a line for each change of the project's pods, how many seconds they are given to end."""
    words = ["--namespace", house.settings.kubernetes.namespace, "get", "pods", "--watch", "-l"]
    words += [f"studio.project={ref.project_id}", "-o", 'jsonpath={.metadata.deletionGracePeriodSeconds}{"\\n"}']
    program = [str(Path(sys.executable).with_name("kubectl")), "--kubeconfig", str(house.settings.kubeconfig)]
    with told.open("w") as file, subprocess.Popen([*program, *words], stdout=file) as watching:
        try:
            yield
        finally:
            watching.terminate()


@pytest.mark.parametrize(("asked_s", "given"), [(1.2, "1"), (60, "5")])
async def test_a_stop_gives_the_time_that_is_asked_for_up_to_the_pods_own(
    house: House, tmp_path: Path, asked_s: float, given: str
) -> None:
    runtime = await house.open()
    ref, told = house.project(), tmp_path / "told"
    await runtime.launch(spec_of(ref, STUBBORN), on_stage=no_stage)
    with watched(house, ref, told):

        async def seen(line: str) -> bool:
            return line in told.read_text().split("\n")[:-1]

        await until(partial(seen, ""), within_s=30)
        await within(60, runtime.stop(ref, grace_s=asked_s))
        await until(partial(seen, given), within_s=30)
        assert given == "1" or not await seen("1")
    assert living(house, ref) == set()
