"""What is Docker's own: the container as asked for, two installations on one engine, networks, an engine in trouble."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

import docker
from activities.errors import ImageMissingError, NameTakenError, RuntimeUnavailableError
from activities.ports import ContainerState, DevServerSpec, ExecSpec, ResourceLimits
from activities.runtimes.docker_firewall import firewall_script, name_servers
from activities.runtimes.docker_spec import DockerContainerSettings, container_config, network_name
from activities.runtimes.guest import collect
from activities.runtimes.open import RuntimeMode, RuntimeSettings, open_runtime
from activities.runtimes.preview_labels import preview_labels
from activities.runtimes.spec import LAUNCHER, spec_hash
from tests.runtimes.conftest import House, no_stage, spec_of
from tests.runtimes.waiting import until
from workflows.contracts.names import LABEL_BUILD, LABEL_SPEC, ProjectRef, container_name

engine_needed = pytest.mark.docker


@pytest.fixture
def mode() -> RuntimeMode:
    return RuntimeMode.DOCKER


# --- the builder ---


def test_the_container_is_asked_for_exactly_so() -> None:
    spec = DevServerSpec(
        ref=ProjectRef(7, 12),
        command="npm run dev",
        port=5173,
        install="npm ci",
        install_inputs=("package-lock.json",),
        environment={"TOKEN": "s3cret", "PORT": "1"},
        limits=ResourceLimits(memory_mb=512, cpus=1.5, pids=100, open_files=2048),
    )
    settings = DockerContainerSettings("inst", "image:1", "/srv/projects", "preview.example.com", 1000, 1000)
    config = container_config(spec, settings)
    labels = config.pop("Labels")
    assert labels.pop(LABEL_SPEC) == spec_hash(spec)
    assert len(labels.pop(LABEL_BUILD)) == 32
    assert labels == {
        "studio.instance": "inst",
        "studio.user": "7",
        "studio.project": "12",
        **preview_labels(spec.ref, 5173, "preview.example.com", "studio-inst-user7"),
    }
    assert config == {
        "Image": "image:1",
        "User": "1000:1000",
        "WorkingDir": "/workspace/app",
        "Entrypoint": ["sh", "-c", LAUNCHER],
        "Cmd": ["studio", "npm run dev", "npm ci", "package-lock.json"],
        "Env": [
            "HOME=/home/dev",
            "HOST=0.0.0.0",
            "PIP_CACHE_DIR=/cache/pip",
            "PORT=5173",
            "STUDIO_PREVIEW_HOST=user7-project12.preview.example.com",
            "TOKEN=s3cret",
            "UV_CACHE_DIR=/cache/uv",
            "__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS=user7-project12.preview.example.com",
            "npm_config_cache=/cache/npm",
            "npm_config_fund=false",
            "npm_config_update_notifier=false",
        ],
        "HostConfig": {
            "NetworkMode": "studio-inst-user7",
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": "/srv/projects/users/7/projects/12",
                    "Target": "/workspace/app",
                    "BindOptions": {"Propagation": "rprivate"},
                },
                {
                    "Type": "bind",
                    "Source": "/srv/projects/users/7/cache",
                    "Target": "/cache",
                    "BindOptions": {"Propagation": "rprivate"},
                },
            ],
            "Tmpfs": {
                "/tmp": "rw,exec,nosuid,nodev,size=256m,mode=1777",
                "/home/dev": "rw,exec,nosuid,nodev,size=256m,mode=0700,uid=1000,gid=1000",
            },
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            "Init": True,
            "IpcMode": "private",
            "Memory": 536870912,
            "MemorySwap": 536870912,
            "NanoCpus": 1500000000,
            "PidsLimit": 100,
            "Ulimits": [{"Name": "nofile", "Soft": 2048, "Hard": 2048}],
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
        },
    }


def test_every_part_of_a_spec_and_of_the_settings_counts() -> None:
    settings = DockerContainerSettings("inst", "image:1", "/srv", "localhost", 1000, 1000)
    spec = spec_of(ProjectRef(1, 2))
    changes: list[dict[str, object]] = [
        {"command": "x"},
        {"port": 1},
        {"install": "y"},
        {"install_inputs": ("a",)},
        {"environment": {"A": "b"}},
        {"limits": ResourceLimits(pids=3)},
    ]
    hashes = {spec_hash(spec), *(spec_hash(dataclasses.replace(spec, **change)) for change in changes)}  # type: ignore[arg-type]  # literals above
    assert len(hashes) == len(changes) + 1
    builds = {
        container_config(spec, one)["Labels"][LABEL_BUILD]
        for one in (settings, dataclasses.replace(settings, image="image:2"), dataclasses.replace(settings, uid=5))
    }
    assert len(builds) == 3


def test_the_preview_is_routed_by_these_labels() -> None:
    assert preview_labels(ProjectRef(7, 12), 5173, "localhost", "net") == {
        "traefik.enable": "true",
        "traefik.docker.network": "net",
        "traefik.http.routers.user7-project12.rule": "Host(`user7-project12.localhost`)",
        "traefik.http.routers.user7-project12.entryPoints": "web",
        "traefik.http.routers.user7-project12.middlewares": "preview-auth@file,preview-errors@file",
        "traefik.http.routers.user7-project12.service": "user7-project12",
        "traefik.http.services.user7-project12.loadbalancer.server.port": "5173",
    }


def test_the_hosts_rules_let_names_through_before_they_refuse(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("# c\nnameserver 10.9.9.9\nnameserver ::1\noptions x\n")
    script = firewall_script("10.202.0.0/16", name_servers(resolv), ("10.50.0.0/24",))
    lines = script.splitlines()
    stem = next(line for line in lines if line.startswith(":"))[1:].split("-IN")[0]
    name = f"-A {stem}-FWD -d 10.9.9.9 -p udp --dport 53 -j RETURN"
    allowed = f"-A {stem}-FWD -d 10.50.0.0/24 -j RETURN"
    refused = f"-A {stem}-FWD -d 10.0.0.0/8 -j REJECT --reject-with icmp-admin-prohibited"
    assert lines.index(name) < lines.index(allowed) < lines.index(refused)
    assert f"-A {stem}-FWD -d 169.254.0.0/16 -j REJECT --reject-with icmp-admin-prohibited" in lines
    assert lines[lines.index("COMMIT") - 1].startswith(f"-A {stem}-FWD")


# --- on the engine ---


@engine_needed
async def test_the_engine_has_applied_all_of_it(house: House, engine: docker.DockerClient) -> None:
    runtime = await house.open()
    ref = house.project()
    status = await runtime.launch(spec_of(ref, environment={"TOKEN": "s3cret"}), on_stage=no_stage)
    shown = engine.containers.get(status.id).attrs
    host = shown["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (2**28, 2**28, 10**9, 64)
    assert (host["CapDrop"], host["SecurityOpt"], host["ReadonlyRootfs"]) == (["ALL"], ["no-new-privileges"], True)
    assert (host["PortBindings"] or {}, shown["Config"]["User"], shown["Name"]) == (
        {},
        "1000:1000",
        f"/{container_name(ref)}",
    )
    assert "s3cret" not in str(shown["Config"]["Labels"]) + str(shown["Args"]) + str(shown["Config"]["Cmd"])
    network = engine.networks.get(network_name(house.settings.instance, ref.user_id)).attrs
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    assert network["IPAM"]["Config"][0]["Subnet"].endswith("/28")
    out, _, _ = await collect(
        runtime.exec(ref, ExecSpec("touch /x /usr/x 2>/dev/null; ls /x; touch /cache/c $HOME/h && echo ok"))
    )
    assert out == b"ok\n"
    await runtime.remove(ref)
    await runtime.remove_user(ref.user_id)
    assert engine.networks.list(names=[network["Name"]]) == []


@engine_needed
async def test_memory_that_ran_out_is_told_as_such(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, 'exec python3 -c "bytearray(700 * 2**20)"'), on_stage=no_stage)
    async with asyncio.timeout(20):
        status = await runtime.wait(ref)
    assert status is not None
    assert (status.exit_code, status.out_of_memory) == (137, True)


@engine_needed
async def test_two_installations_share_an_engine(house: House) -> None:
    ref = house.project()
    other = dataclasses.replace(house.settings, instance=f"other{uuid4().hex[:8]}")
    runtime = await house.open()
    async with open_runtime(other) as neighbour:
        try:
            first = await runtime.launch(spec_of(ref), on_stage=no_stage)
            second = await neighbour.launch(spec_of(ref), on_stage=no_stage)
            assert first.id != second.id
            assert first.address != second.address
            assert [status.id for status in await runtime.discover()] == [first.id]
            await neighbour.remove(ref)
            kept = await runtime.inspect(ref)
            assert kept is not None
            assert kept.state is ContainerState.RUNNING
        finally:
            await neighbour.remove(ref)
            await neighbour.remove_user(ref.user_id)


@engine_needed
async def test_a_strangers_container_keeps_its_name(house: House, engine: docker.DockerClient, image: str) -> None:
    ref = house.project()
    stranger = engine.containers.create(image, "true", name=container_name(ref))
    try:
        runtime = await house.open()
        status = await runtime.launch(spec_of(ref), on_stage=no_stage)
        name = engine.containers.get(status.id).name
        assert name == f"{container_name(ref)}-{house.settings.instance}"
        await runtime.remove(ref)
        stranger.reload()
        assert stranger.name == container_name(ref)
        second = engine.containers.create(image, "true", name=name)
        try:
            with pytest.raises(NameTakenError):
                await runtime.launch(spec_of(ref), on_stage=no_stage)
        finally:
            second.remove()
    finally:
        stranger.remove()


@engine_needed
async def test_a_missing_image_is_said_and_leaves_nothing(house: House) -> None:
    house.settings = dataclasses.replace(house.settings, image="studio-there-is-none:1")
    runtime = await house.open()
    ref = house.project()
    with pytest.raises(ImageMissingError):
        await runtime.launch(spec_of(ref), on_stage=no_stage)
    with pytest.raises(ImageMissingError):
        await runtime.ready()
    assert await runtime.discover() == []


@engine_needed
async def test_a_start_that_fails_leaves_no_container(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    shadow = house.folder(ref)
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    await runtime.stop(ref, grace_s=0)
    shadow.rmdir()  # a start of the old one fails, and so does the new one
    with pytest.raises(Exception, match="folder"):
        await runtime.launch(spec_of(ref), on_stage=no_stage)
    assert await runtime.discover() == []


@engine_needed
async def test_a_network_that_went_is_made_again(house: House, engine: docker.DockerClient) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    await runtime.stop(ref, grace_s=0)
    engine.networks.get(network_name(house.settings.instance, ref.user_id)).remove()
    status = await runtime.launch(spec_of(ref), on_stage=no_stage)
    assert status.state is ContainerState.RUNNING
    await until(lambda: runtime.probe(ref, 8000))


@engine_needed
async def test_a_network_that_goes_during_a_start_is_a_cause_that_passes(
    house: House, engine: docker.DockerClient
) -> None:
    """The user's last other project is deleted at that moment."""
    runtime = await house.open()
    ref = house.project()

    async def take_it_away(stage: str) -> None:
        if stage == "starting":
            engine.networks.get(network_name(house.settings.instance, ref.user_id)).remove()

    with pytest.raises(RuntimeUnavailableError):
        await runtime.launch(spec_of(ref), on_stage=take_it_away)
    status = await runtime.launch(spec_of(ref), on_stage=no_stage)
    assert status.state is ContainerState.RUNNING


@engine_needed
async def test_networks_are_made_once_and_never_overlap(house: House, engine: docker.DockerClient) -> None:
    user_ids = [int(uuid4().int % 10**8) for _ in range(3)]
    refs = [house.project(user_id) for user_id in user_ids for _ in range(2)]
    runtimes = [await house.open(), await house.open()]
    statuses = await asyncio.gather(
        *(runtimes[n % 2].launch(spec_of(ref), on_stage=no_stage) for n, ref in enumerate(refs))
    )
    assert len({status.address for status in statuses}) == len(refs)
    prefix = f"studio-{house.settings.instance}-"
    names = [str(network.name) for network in engine.networks.list() if str(network.name).startswith(prefix)]
    assert sorted(names) == sorted(network_name(house.settings.instance, user_id) for user_id in user_ids)


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """A careless program of the host, bound to every address."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


@engine_needed
async def test_a_container_reaches_nothing_of_the_house(house: House, engine: docker.DockerClient) -> None:
    runtime = await house.open()
    await runtime.ready()
    if runtime.isolation != "full":  # type: ignore[attr-defined]  # the Docker driver's own
        pytest.skip("no iptables here: the driver says `partial`")
    ref, sibling, stranger = house.project(), house.project(), house.project(user_id=8)
    for one in (ref, sibling, stranger):
        await runtime.launch(spec_of(one), on_stage=no_stage)
    for one in (ref, sibling, stranger):
        await until(lambda one=one: runtime.probe(one, 8000))  # type: ignore[misc]  # the host reaches them all
    statuses = [await runtime.inspect(one) for one in (sibling, stranger)]
    targets = [status.address for status in statuses if status is not None and status.address is not None]
    network = engine.networks.get(network_name(house.settings.instance, ref.user_id)).attrs
    own = await runtime.inspect(ref)
    assert own is not None
    assert own.address is not None
    gateway = engine.containers.get(own.id).attrs["NetworkSettings"]["Networks"][network["Name"]]["Gateway"]
    with listener() as port:
        addresses = [*targets, (gateway, port), (_host_address(), port), ("169.254.169.254", 80)]
        script = (
            "import socket\n"
            f"for address in {addresses!r}:\n"
            "  try: socket.create_connection(address, 1.5).close(); print('reached', address)\n"
            "  except OSError: pass\n"
            f"socket.create_connection({('127.0.0.1', 8000)!r}, 2); print('itself')\n"
        )
        out, errors, _ = await collect(
            runtime.exec(ref, ExecSpec('python3 -c "$SCRIPT"', environment={"SCRIPT": script}))
        )
    assert (out, errors) == (b"itself\n", b"")


def _host_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.254", 9))
        return str(probe.getsockname()[0])


# --- an engine in trouble ---


@pytest.fixture
async def house_away(tmp_path: Path) -> AsyncIterator[House]:
    settings = RuntimeSettings(
        mode=RuntimeMode.DOCKER,
        instance="away",
        data_dir=tmp_path,
        projects_root=tmp_path / "projects",
        engine_url=f"unix://{tmp_path}/no.sock",
    )
    async with AsyncExitStack() as stack:
        yield House(settings, stack)


async def test_an_engine_that_is_away_is_unavailable(tmp_path: Path, house_away: House) -> None:
    runtime = await house_away.open()
    ref = ProjectRef(1, 1)
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
            await call
        assert raised.value.retryable
