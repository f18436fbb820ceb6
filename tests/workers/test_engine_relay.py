"""The worker's way to the engine for others: what it lets through, on a real engine, and what it doesn't."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from http import HTTPStatus
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from aiodocker import Docker
from aiodocker.exceptions import DockerError
from docker.models.containers import Container

import docker
from activities.runtimes.docker_firewall import Firewall
from workers.engine_relay import EngineRelay, Request, exec_body, read_request
from workflows.contracts.names import LABEL_INSTANCE

IMAGE = "studio-devserver:latest"
ENGINE = Path("/var/run/docker.sock")

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def instance() -> str:
    return f"relay-{uuid4().hex[:8]}"


def run_container(instance: str) -> Container:
    with closing(docker.from_env()) as engine:
        words = ["sh", "-c", "echo hello; exec sleep 300"]
        container = engine.containers.run(
            IMAGE, words, detach=True, network_mode="none", labels={LABEL_INSTANCE: instance}
        )
        assert isinstance(container, Container)
        return container


@pytest.fixture(scope="module")
def ours(instance: str) -> Iterator[Container]:
    container = run_container(instance)
    yield container
    container.remove(force=True)


@pytest.fixture(scope="module")
def theirs(instance: str) -> Iterator[Container]:
    container = run_container(f"{instance}-other")
    yield container
    container.remove(force=True)


@asynccontextmanager
async def relayed(folder: Path, instance: str, *, may_run: bool = True) -> AsyncIterator[Docker]:
    path = folder / "engine.sock"
    relay = EngineRelay(ENGINE, instance=instance, image=IMAGE, may_run=may_run)
    async with relay.listening(path), aiohttp.UnixConnector(str(path), limit=0) as connector:
        client = Docker(url="unix://localhost", connector=connector)
        try:
            yield client
        finally:
            await client.close()


async def test_commands_and_logs_of_ours_go_through_both_ways(tmp_path: Path, instance: str, ours: Container) -> None:
    async with relayed(tmp_path, instance) as client:
        container = client.containers.container(str(ours.name))
        run = await container.exec(["sh", "-c", "read line; echo got $line; echo wrong >&2; exit 7"], stdin=True)
        output = {1: b"", 2: b""}
        async with run.start() as stream, asyncio.timeout(30):
            await stream.write_in(b"across\n")
            while message := await stream.read_out():
                output[message.stream] += message.data
        assert output == {1: b"got across\n", 2: b"wrong\n"}
        assert (await run.inspect())["ExitCode"] == 7
        assert await container.log(stdout=True, stderr=True) == ["hello\n"]
        assert (await client.images.inspect(IMAGE))["Id"]


async def test_whoever_leaves_ends_the_input_of_their_command(tmp_path: Path, instance: str, ours: Container) -> None:
    async with relayed(tmp_path, instance) as client:
        container = client.containers.container(str(ours.id))
        run = await container.exec(["sh", "-c", "echo on; cat >/dev/null; exit 3"], stdin=True)
        stream = run.start()
        async with asyncio.timeout(30):
            assert await stream.read_out()
            await stream.close()
            while (await run.inspect())["Running"]:  # noqa: ASYNC110 -- the engine is asked, not told by
                await asyncio.sleep(0.05)
        assert (await run.inspect())["ExitCode"] == 3


async def test_what_isnt_ours_isnt_there(tmp_path: Path, instance: str, ours: Container, theirs: Container) -> None:
    async with relayed(tmp_path, instance) as client:
        assert [each.id for each in await client.containers.list(all="1")] == [ours.id]
        asked = json.dumps({"status": {"running": True}})
        assert [each.id for each in await client.containers.list(filters=asked)] == [ours.id]
        container = client.containers.container(str(theirs.id))
        foreign = theirs.client.api.exec_create(theirs.id, ["true"])["Id"]  # type: ignore[union-attr]  # has its client
        for asking in (
            container.show(),
            container.log(stdout=True),
            container.exec(["true"]),
            client._query_json(f"exec/{foreign}/json"),
        ):
            with pytest.raises(DockerError) as refused:
                await asking
            assert refused.value.status == HTTPStatus.NOT_FOUND


async def test_nothing_is_made_changed_or_removed(tmp_path: Path, instance: str, ours: Container) -> None:
    async with relayed(tmp_path, instance) as client:
        container = client.containers.container(str(ours.id))
        for asking in (
            client.containers.create({"Image": IMAGE}),
            container.stop(),
            container.delete(force=True),
            container.exec(["id"], user="0"),
            container.exec(["id"], privileged=True),
            client._query_json("images/json"),
            client._query_json("volumes"),
            client._query_json("networks"),
            client.images.inspect("studio-api:latest"),
            client._query_json(f"containers/{ours.id}/archive", method="PUT"),
            client._query_json(f"containers/{ours.id}%2fstop", method="POST"),
        ):
            with pytest.raises(DockerError) as refused:
                await asking
            assert refused.value.status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
        assert (await container.show())["State"]["Running"]


async def test_the_hosts_rules_are_left_to_who_may_set_them(tmp_path: Path, instance: str) -> None:
    async with relayed(tmp_path, instance) as client:
        firewall = Firewall(client, pool="10.202.0.0/16", image=IMAGE)
        await firewall.ensure()
        assert firewall.state == "another's"


async def test_the_gateway_sees_and_runs_nothing(tmp_path: Path, instance: str, ours: Container) -> None:
    async with relayed(tmp_path, instance, may_run=False) as client:
        container = client.containers.container(str(ours.id))
        assert (await container.show())["Id"] == ours.id
        for asking in (container.exec(["true"]), container.log(stdout=True)):
            with pytest.raises(DockerError) as refused:
                await asking
            assert refused.value.status == HTTPStatus.FORBIDDEN


async def test_events_are_those_of_ours(tmp_path: Path, instance: str, ours: Container, theirs: Container) -> None:
    async with relayed(tmp_path, instance, may_run=False) as client, asyncio.timeout(30):
        async with client._query("events", params={"filters": json.dumps({"type": ["container"]})}) as response:
            theirs.kill("SIGUSR2")
            ours.kill("SIGUSR2")
            seen = json.loads(await response.content.readline())
            response.close()  # it has no end
        assert (seen["Actor"]["ID"], seen["Action"]) == (ours.id, "kill")


async def test_a_connection_carries_one_request(tmp_path: Path, instance: str, ours: Container) -> None:
    async with relayed(tmp_path, instance):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "engine.sock")
        hidden = f"POST /containers/{ours.id}/stop?t=0 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        asked = f"POST /exec/{'0' * 64}/start HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{{}}"
        writer.write((asked + hidden).encode())
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 404")
        assert answer.count(b"HTTP/1.1") == 1
        ours.reload()
        assert ours.status == "running"


async def parsed(text: str) -> Request:
    reader = asyncio.StreamReader()
    reader.feed_data(text.encode())
    reader.feed_eof()
    return await read_request(reader)


async def test_a_request_is_understood_or_refused() -> None:
    asked = await parsed("POST /v1.41/exec/a/start?h=1&h=2 HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}GET /")
    assert asked == Request("POST", ("exec", "a", "start"), {"h": "2"}, b"{}")
    for text in (
        "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /x HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n",
        "nonsense\r\n\r\n",
    ):
        with pytest.raises(ValueError, match=r"."):
            await parsed(text)
    with pytest.raises(EOFError):
        await parsed("GET / HTTP/1.1\r\n")


def test_a_command_keeps_what_it_needs_alone() -> None:
    asked = {"Cmd": ["id"], "Tty": True, "Privileged": False, "User": "", "Mounts": ["x"]}
    assert json.loads(exec_body(json.dumps(asked).encode())) == {"Cmd": ["id"], "Tty": True}
    with pytest.raises(ValueError, match="object"):
        exec_body(b"[]")
