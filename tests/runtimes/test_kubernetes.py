"""What is the Kubernetes driver's own, on a real cluster: what keeps a server from running, and what heals."""

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from activities.errors import (
    ImageMissingError,
    NotRunningError,
    ResourcesExhaustedError,
    RuntimeUnavailableError,
    SpecInvalidError,
)
from activities.ports import ContainerState, ExecSpec, ResourceLimits, Runtime
from activities.runtimes.guest import collect
from activities.runtimes.kubernetes_client import Cluster, Kind, Object
from activities.runtimes.open import RuntimeMode, RuntimeSettings
from tests.cluster import kubectl
from tests.runtimes.conftest import House, no_stage, spec_of
from tests.runtimes.waiting import until
from workflows.contracts.names import ProjectRef, kubernetes_name

cluster_needed = pytest.mark.kubernetes


@pytest.fixture
def mode() -> RuntimeMode:
    return RuntimeMode.KUBERNETES


def in_namespace(house: House, *words: str, text: str | None = None) -> str:
    """An observer, and a hand in the cluster, that shares nothing with the driver."""
    return kubectl("--namespace", house.settings.kubernetes.namespace, *words, text=text)


def pods_of(house: House, ref: ProjectRef) -> list[dict[str, Any]]:
    labels = f"studio.instance={house.settings.instance},studio.project={ref.project_id}"
    found: list[dict[str, Any]] = json.loads(in_namespace(house, "get", "pods", "-l", labels, "-o", "json"))["items"]
    return found


def living(house: House, ref: ProjectRef) -> set[str]:
    return {
        pod["metadata"]["uid"]
        for pod in pods_of(house, ref)
        if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] == "Running"
    }


def pod_nowhere(house: House, ref: ProjectRef, name: str) -> Object:
    """A pod of the project's on a node that isn't there."""
    labels = {"studio.instance": house.settings.instance, "studio.user": "7", "studio.project": str(ref.project_id)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": "gone", "containers": [{"name": "server", "image": "x"}]},
    }


def with_options(house: House, **changes: object) -> None:
    """Another house from here on, whose dev servers ask for something else of the cluster."""
    options = dataclasses.replace(house.settings.kubernetes, **changes)  # type: ignore[arg-type]  # a test names a field
    house.settings = dataclasses.replace(house.settings, kubernetes=options)


async def within(seconds: float, awaited: Awaitable[Any]) -> Any:
    async with asyncio.timeout(seconds):
        return await awaited


# --- causes that keep it from coming up ---


@cluster_needed
@pytest.mark.parametrize("image", ["studio-there-is-none:1", "No Such Name"])
async def test_an_image_that_cant_be_had_is_said_and_leaves_nothing(house: House, image: str) -> None:
    house.settings = dataclasses.replace(house.settings, image=image)
    runtime = await house.open()
    with pytest.raises(ImageMissingError):
        await within(60, runtime.launch(spec_of(house.project()), on_stage=no_stage))
    assert await runtime.discover() == []


@cluster_needed
async def test_a_full_quota_is_said_and_leaves_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.runtimes.kubernetes._QUOTA_S", 1.5)
    runtime = await house.open()
    ref = house.project()
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}}
    in_namespace(house, "apply", "-f", "-", text=json.dumps(quota))
    try:
        await until(lambda: _is_full(house), within_s=30)
        with pytest.raises(ResourcesExhaustedError, match="quota"):
            await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
        assert await runtime.discover() == []
    finally:
        in_namespace(house, "delete", "resourcequota", "full")
    status = await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert status.state is ContainerState.RUNNING


async def _is_full(house: House) -> bool:
    return in_namespace(house, "get", "resourcequota", "full", "-o", "jsonpath={.status.hard.pods}") == "0"


@cluster_needed
@pytest.mark.parametrize(
    ("changes", "reason"), [({"volume_claim": "there-is-none"}, "volume"), ({"node_selector": {"a": "b"}}, "No node")]
)
async def test_a_volume_or_a_node_that_isnt_there_is_said_in_time(
    house: House, changes: Mapping[str, object], reason: str
) -> None:
    with_options(house, **changes)
    runtime = await house.open()
    ref = house.project()
    with pytest.raises(ResourcesExhaustedError, match=reason) as raised:
        await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert raised.value.retryable
    # It may pass: the pod waits on, and the next try goes on from there.
    before = [pod["metadata"]["uid"] for pod in pods_of(house, ref)]
    with pytest.raises(ResourcesExhaustedError):
        await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert [pod["metadata"]["uid"] for pod in pods_of(house, ref)] == before


@cluster_needed
async def test_a_folder_that_leads_out_of_the_volume_is_refused(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    folder = house.folder(ref)
    folder.rmdir()
    folder.symlink_to("/etc")
    with pytest.raises(SpecInvalidError, match="refuses"):
        await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert await runtime.discover() == []
    folder.unlink()


@cluster_needed
async def test_a_namespace_that_isnt_there_is_said(house: House) -> None:
    with_options(house, namespace="studio-there-is-none")
    runtime = await house.open()
    with pytest.raises(SpecInvalidError, match="namespace"):
        await within(30, runtime.launch(spec_of(house.project()), on_stage=no_stage))


# --- ends ---


@cluster_needed
async def test_memory_that_ran_out_is_told_as_such(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, 'exec python3 -c "bytearray(700 * 2**20)"'), on_stage=no_stage)
    status = await within(60, runtime.wait(ref))
    assert (status.state, status.exit_code, status.out_of_memory) == (ContainerState.EXITED, 137, True)

    async def gone() -> bool:
        return not pods_of(house, ref)

    await until(gone, within_s=60)
    later = await (await house.open()).inspect(ref)
    assert later is not None
    assert (later.state, later.exit_code, later.out_of_memory) == (ContainerState.EXITED, 137, True)


@cluster_needed
async def test_a_crashed_server_isnt_begun_again_by_itself(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    crash = "echo ran >> ran.txt; echo last words; exit 5"
    await runtime.launch(spec_of(ref, crash), on_stage=no_stage)

    async def parked() -> bool:
        (pod,) = pods_of(house, ref)
        (container,) = pod["status"]["containerStatuses"]
        return container["restartCount"] == 1 and "running" in container["state"]

    await until(parked, within_s=60)
    assert (house.folder(ref) / "ran.txt").read_text() == "ran\n"
    assert await _log(runtime, ref) == b"last words\n"
    with pytest.raises(NotRunningError):
        await collect(runtime.exec(ref, ExecSpec("true")))
    later = await house.open()
    again = await later.inspect(ref)
    assert again is not None
    assert (again.state, again.exit_code) == (ContainerState.EXITED, 5)
    await later.launch(spec_of(ref, crash), on_stage=no_stage)
    assert (await within(60, later.wait(ref))).exit_code == 5
    assert (house.folder(ref) / "ran.txt").read_text() == "ran\n" * 2


async def _log(runtime: Runtime, ref: ProjectRef, **options: Any) -> bytes:
    return b"".join([piece async for piece in runtime.logs(ref, **options)])


@cluster_needed
async def test_the_log_of_a_stopped_server_is_still_there(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, "for n in 1 2 3; do echo line $n; done; sleep 300"), on_stage=no_stage)

    async def written() -> bool:
        return b"line 3" in await _log(runtime, ref)

    await until(written, within_s=30)
    await runtime.stop(ref)
    assert await _log(await house.open(), ref, tail=2) == b"line 2\nline 3\n"
    assert await within(10, _log(runtime, ref, follow=True)) == b"line 1\nline 2\nline 3\n"
    with pytest.raises(NotRunningError):
        await collect(runtime.exec(ref, ExecSpec("true")))


# --- what others do to it ---


@cluster_needed
async def test_a_pod_deleted_by_hand_has_a_successor(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    await until(lambda: runtime.probe(ref, 8000), within_s=30)
    (first,) = living(house, ref)
    waiting = asyncio.create_task(runtime.wait(ref))
    in_namespace(house, "delete", "pod", "--wait=false", "-l", f"studio.project={ref.project_id}")

    async def succeeded() -> bool:
        return bool(living(house, ref) - {first}) and await runtime.probe(ref, 8000)

    await until(succeeded, within_s=60)
    assert not waiting.done()
    await runtime.stop(ref)
    status = await within(30, waiting)
    assert status.state is ContainerState.EXITED


@cluster_needed
async def test_a_pod_struck_off_by_force_has_a_successor_and_its_command_ran_once(house: House) -> None:
    """Its node hears of it later: for a moment the two run beside each other."""
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    command = ExecSpec("echo ran >> ran.txt; sleep 300", timeout_s=600)
    await runtime.start_command(ref, "long", command)
    (first,) = living(house, ref)
    for name in ("given-up-1", "given-up-2"):
        in_namespace(house, "apply", "-f", "-", text=json.dumps(pod_nowhere(house, ref, name)))
        in_namespace(house, "patch", "pod", name, "--subresource=status", "-p", '{"status": {"phase": "Failed"}}')
    waiting = asyncio.create_task(runtime.wait(ref))
    (name,) = (pod["metadata"]["name"] for pod in pods_of(house, ref) if pod["metadata"]["uid"] == first)
    in_namespace(house, "delete", "pod", name, "--force", "--grace-period=0", "--wait=false")

    async def succeeded() -> bool:
        return bool(living(house, ref) - {first}) and await runtime.probe(ref, 8000)

    await until(succeeded, within_s=60)
    assert not waiting.done()
    waiting.cancel()
    assert len([pod for pod in pods_of(house, ref) if pod["status"]["phase"] == "Failed"]) == 1

    async def over() -> bool:
        return (await runtime.start_command(ref, "long", command)).exit_code is not None

    await until(over, within_s=60)
    status = await runtime.command_status(ref, "long")
    assert status is not None
    assert (status.exit_code, "killed" in status.note) == (137, True)
    assert (house.folder(ref) / "ran.txt").read_text() == "ran\n"


@cluster_needed
async def test_an_evicted_pod_has_a_successor(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    (first,) = living(house, ref)
    waiting = asyncio.create_task(runtime.wait(ref))
    await collect(runtime.exec(ref, ExecSpec("head -c 9000000 /dev/zero > /run/studio/too-much")))

    async def succeeded() -> bool:
        return bool(living(house, ref) - {first}) and await runtime.probe(ref, 8000)

    await until(succeeded, within_s=120)
    assert not waiting.done()
    waiting.cancel()
    assert {pod["status"].get("reason") for pod in pods_of(house, ref)} >= {"Evicted"}
    status = await runtime.inspect(ref)
    assert status is not None
    assert status.state is ContainerState.RUNNING


@cluster_needed
async def test_a_deployment_edited_by_hand_is_corrected_by_the_next_launch(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    name = f"deployment/{kubernetes_name(ref)}"
    before = await runtime.launch(spec_of(ref), on_stage=no_stage)
    in_namespace(house, "set", "env", name, "ADDED=by-hand")
    after = await within(90, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert after.id != before.id
    out, _, _ = await collect(runtime.exec(ref, ExecSpec("echo $ADDED-")))
    assert out == b"-\n"
    in_namespace(house, "scale", name, "--replicas=0")
    status = await within(60, runtime.wait(ref))
    assert status.state is ContainerState.EXITED
    assert (await within(90, runtime.launch(spec_of(ref), on_stage=no_stage))).state is ContainerState.RUNNING


@cluster_needed
async def test_a_deployment_deleted_by_hand_is_gone(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    waiting = asyncio.create_task(runtime.wait(ref))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    in_namespace(house, "delete", "deployment", kubernetes_name(ref), "--wait=false")
    assert await within(60, waiting) is None


@cluster_needed
async def test_a_pod_that_doesnt_end_is_struck_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node has gone: nobody is left who would tell that it has ended."""
    monkeypatch.setattr("activities.runtimes.kubernetes_objects._STUCK_S", 3.0)
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    in_namespace(house, "apply", "-f", "-", text=json.dumps(pod_nowhere(house, ref, "stuck")))
    in_namespace(house, "delete", "pod", "stuck", "--wait=false")
    assert "stuck" in {found["metadata"]["name"] for found in pods_of(house, ref)}
    await within(60, runtime.remove(ref))
    assert "stuck" not in {found["metadata"]["name"] for found in pods_of(house, ref)}


# --- the watch ---


@cluster_needed
async def test_a_watch_from_too_long_ago_begins_anew(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    watch = Cluster.watch

    def forgetful(self: Cluster, kind: Kind, *, labels: str, version: str) -> AsyncIterator[Object]:
        asked.append(version)
        return watch(self, kind, labels=labels, version="1" if len(asked) <= 2 else version)

    monkeypatch.setattr(Cluster, "watch", forgetful)
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    waiting = asyncio.create_task(runtime.wait(ref))

    async def begun_anew() -> bool:
        return len(asked) >= 4

    await until(begun_anew, within_s=30)
    await (await house.open()).stop(ref)
    assert (await within(30, waiting)).state is ContainerState.EXITED


@cluster_needed
async def test_many_projects_ask_the_server_for_little(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many start and are waited for, one process watches twice, and nobody asks again and again."""
    calls: Counter[str] = Counter()
    call = Cluster._call

    @asynccontextmanager
    async def counted(
        self: Cluster, method: str, path: str, query: Any = (), **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        watches = ("watch", "true") in query
        calls["watch" if watches else "list" if method == "GET" and path.endswith("s") else method] += 1
        async with call(self, method, path, query, **options) as response:
            yield response

    monkeypatch.setattr(Cluster, "_call", counted)
    runtime = await house.open()
    limits = ResourceLimits(memory_mb=64, cpus=0.2, pids=64, open_files=1024)
    refs = [house.project() for _ in range(12)]
    statuses = await within(
        240, asyncio.gather(*(runtime.launch(spec_of(ref, limits=limits), on_stage=no_stage) for ref in refs))
    )
    assert {status.state for status in statuses} == {ContainerState.RUNNING}
    waits = [asyncio.create_task(runtime.wait(ref)) for ref in refs]
    await asyncio.sleep(5)
    assert not any(waiting.done() for waiting in waits)
    for waiting in waits:
        waiting.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert calls["watch"] <= 4, calls
    assert calls["PATCH"] == 3 * len(refs)
    assert calls["list"] + calls["GET"] <= 12 * len(refs), calls


# --- a cluster in trouble ---


@pytest.fixture
async def house_away(tmp_path: Path) -> AsyncIterator[House]:
    cluster = {"name": "away", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "away", "context": {"cluster": "away", "user": "nobody"}}
    config = {"clusters": [cluster], "contexts": [context], "current-context": "away"}
    config["users"] = [{"name": "nobody", "user": {"token": "x"}}]
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    settings = RuntimeSettings(
        mode=RuntimeMode.KUBERNETES,
        instance="away",
        data_dir=tmp_path,
        projects_root=tmp_path / "projects",
        kubeconfig=tmp_path / "kubeconfig",
    )
    async with AsyncExitStack() as stack:
        yield House(settings, stack)


async def test_a_cluster_that_is_away_is_unavailable(house_away: House) -> None:
    runtime = await house_away.open()
    ref = house_away.project()
    for call in (
        runtime.ready(),
        runtime.launch(spec_of(ref), on_stage=no_stage),
        runtime.stop(ref),
        runtime.remove(ref),
        runtime.inspect(ref),
        runtime.discover(),
        runtime.wait(ref),
        runtime.start_command(ref, "x", ExecSpec("true")),
        collect(runtime.exec(ref, ExecSpec("true"))),
    ):
        with pytest.raises(RuntimeUnavailableError) as raised:
            await within(20, call)
        assert raised.value.retryable
