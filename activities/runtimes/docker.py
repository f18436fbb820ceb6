"""The Docker driver: a container per dev server on an engine that may serve other installations too.

The container's name is `user{u}-project{p}`; when a container that isn't this installation's holds it, ours is
`user{u}-project{p}-{instance}`. Which container is ours its labels tell, never its name.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiodocker import Docker
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from activities.errors import (
    ContainerMissingError,
    ImageMissingError,
    NameTakenError,
    NotRunningError,
    RuntimeFault,
    RuntimeUnavailableError,
)
from activities.ports import (
    ContainerState,
    ContainerStatus,
    DevServerSpec,
    StageListener,
)
from activities.runtimes.docker_channels import DockerChannel, open_exec, read_log
from activities.runtimes.docker_faults import CONFLICT, NOT_FOUND, NOT_MODIFIED, faults
from activities.runtimes.docker_firewall import Firewall
from activities.runtimes.docker_interfaces import quieten
from activities.runtimes.docker_network import UserNetworks
from activities.runtimes.docker_spec import (
    DockerContainerSettings,
    container_config,
    identity_labels,
    network_name,
)
from activities.runtimes.guest import Guest
from activities.runtimes.guest_runtime import GuestRuntime
from activities.runtimes.probing import answers_soon
from activities.runtimes.spec import PROJECT_FOLDER, check_environment
from workflows.contracts.names import (
    LABEL_BUILD,
    LABEL_INSTANCE,
    LABEL_PROJECT,
    LABEL_SPEC,
    LABEL_USER,
    ProjectRef,
    container_name,
    user_subpath,
)

_TERMINALS: Final = "/tmp/.studio/terminals"  # noqa: S108 -- a tmpfs of the container's own
_REMOVAL_S: Final = 15.0
_START_S: Final = 60.0
_STATES: Final = {"created": ContainerState.CREATED, "running": ContainerState.RUNNING}
_INSPECTIONS: Final = 10


@dataclass(frozen=True)
class DockerSettings:
    """Settings of the driver.

    `instance`: this installation's name on the engine, `[a-z0-9-]`. `projects_root`: where this process sees the
    files; `engine_projects_root`: where the engine's host does, None: the same. `network_pool`: /28s are cut from it.
    `egress_allow`: private networks that containers may reach all the same (a package mirror). `uid` None: this
    process's own when it isn't root, else 1000.
    """

    instance: str
    projects_root: Path
    image: str = "studio-devserver:latest"
    preview_domain: str = "localhost"
    network_pool: str = "10.202.0.0/16"
    engine_url: str = "unix:///var/run/docker.sock"
    engine_projects_root: str | None = None
    egress_allow: tuple[str, ...] = ()
    uid: int | None = None

    def containers(self) -> DockerContainerSettings:
        """The part of it that every container's config follows from."""
        uid = self.uid if self.uid is not None else (os.getuid() or 1000)
        return DockerContainerSettings(
            instance=self.instance,
            image=self.image,
            projects_root=self.engine_projects_root or str(self.projects_root.resolve()),
            preview_domain=self.preview_domain,
            uid=uid,
            gid=uid if self.uid is not None or os.getuid() == 0 else os.getgid(),
        )


class DockerRuntime(GuestRuntime):
    """`Runtime` on a Docker engine. Make it with a running event loop; `close` it in the same."""

    name = "docker"

    def __init__(self, settings: DockerSettings) -> None:
        self._settings = settings
        self._containers = settings.containers()
        self._connector = _connector(settings.engine_url)
        self._docker = Docker(
            url="unix://localhost" if settings.engine_url.startswith("unix://") else settings.engine_url,
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=30, connect=5),
        )
        self._networks = UserNetworks(self._docker, instance=settings.instance, pool=settings.network_pool)
        self._firewall = Firewall(
            self._docker, pool=settings.network_pool, image=settings.image, allow=settings.egress_allow
        )
        super().__init__(Guest(self, root=lambda _: PROJECT_FOLDER, terminals=lambda _: _TERMINALS))

    @property
    def isolation(self) -> str:
        """How well containers are kept from the host's networks: `full`, `partial: …`, or `unknown` before `ready`."""
        return self._firewall.state

    # --- one container per project ---

    async def launch(self, spec: DevServerSpec, *, on_stage: StageListener) -> ContainerStatus:
        """See `Runtime.launch`."""
        check_environment(spec.environment)
        config = container_config(spec, self._containers)
        if self._firewall.state == "unknown":
            await self._firewall.ensure()
        found = await self._find(spec.ref)
        if found is not None and not _made_from(found, config):
            await on_stage("creating")
            await self._remove(found["Id"])
            found = None
        if found is not None and found["State"] == "running":
            return await self._required(spec.ref)
        if found is not None:
            await on_stage("starting")
            try:
                return await self._start(found["Id"])
            except (RuntimeUnavailableError, NameTakenError):
                raise
            except RuntimeFault:  # what it was made with is gone (network, folder): make it anew, and see
                await self._remove(found["Id"])
        return await self._make(spec, config, on_stage)

    async def stop(self, ref: ProjectRef, *, grace_s: float = 5.0) -> None:
        """See `Runtime.stop`."""
        found = await self._find(ref)
        if found is None or found["State"] in {"created", "exited", "dead"}:
            return
        with faults():
            try:
                timeout = aiohttp.ClientTimeout(total=grace_s + 30)
                await self._container(found["Id"]).stop(t=round(grace_s), timeout=timeout)
            except DockerError as error:
                if error.status not in {NOT_FOUND, NOT_MODIFIED}:
                    raise

    async def remove(self, ref: ProjectRef) -> None:
        """See `Runtime.remove`."""
        for found in await self._list(identity_labels(self._settings.instance, ref)):
            await self._remove(found["Id"])

    async def remove_user(self, user_id: int) -> None:
        """See `Runtime.remove_user`."""
        labels = {LABEL_INSTANCE: self._settings.instance, LABEL_USER: str(user_id)}
        if not await self._list(labels):
            await self._networks.remove(user_id)

    async def inspect(self, ref: ProjectRef) -> ContainerStatus | None:
        """See `Runtime.inspect`."""
        found = await self._find(ref)
        return None if found is None else await self._show(found["Id"])

    async def discover(self) -> list[ContainerStatus]:
        """See `Runtime.discover`."""
        found = await self._list({LABEL_INSTANCE: self._settings.instance})
        bound = asyncio.Semaphore(_INSPECTIONS)

        async def show(identifier: str) -> ContainerStatus | None:
            async with bound:
                return await self._show(identifier)

        shown = await asyncio.gather(*(show(entry["Id"]) for entry in found))
        return [status for status in shown if status is not None]

    async def wait(self, ref: ProjectRef) -> ContainerStatus | None:
        """See `Runtime.wait`."""
        found = await self._find(ref)
        if found is None:
            return None
        with faults():
            try:
                await self._container(found["Id"]).wait(condition="not-running")
            except DockerError as error:
                if error.status != NOT_FOUND:
                    raise
        # An answer also comes when the engine goes down: what it says afterwards counts.
        status = await self._show(found["Id"])
        if status is not None and status.state is ContainerState.RUNNING:
            raise RuntimeUnavailableError("The container engine gave up waiting.")
        return status

    async def probe(self, ref: ProjectRef, port: int) -> bool:
        """See `Runtime.probe`."""
        found = await self._find(ref)
        if found is None or found["State"] != "running":
            return False
        network = found["NetworkSettings"]["Networks"].get(network_name(self._settings.instance, ref.user_id)) or {}
        host = str(network.get("IPAddress") or "")
        return bool(host) and await answers_soon(host, port)

    async def logs(self, ref: ProjectRef, *, tail: int = 200, follow: bool = False) -> AsyncIterator[bytes]:
        """See `Runtime.logs`."""
        found = await self._find(ref)
        if found is None:
            raise ContainerMissingError("This project has no container yet.")
        async for piece in read_log(self._docker, found["Id"], tail=tail, follow=follow):
            yield piece

    # --- beside the server: see GuestRuntime ---

    @asynccontextmanager
    async def open_channel(self, ref: ProjectRef) -> AsyncIterator[DockerChannel]:
        """A process in the project's container; for `Guest`."""
        found = await self._find(ref)
        if found is None:
            raise ContainerMissingError("This project has no container; start it first.")
        if found["State"] != "running":
            raise NotRunningError("This project's container doesn't run; start it first.")
        async with open_exec(self._docker, found["Id"]) as channel:
            yield channel

    async def ready(self) -> None:
        """See `Runtime.ready`. Also sets the host's rules anew: another program may have flushed them."""
        with faults():
            try:
                await self._docker.images.inspect(self._settings.image)
            except DockerError as error:
                if error.status == NOT_FOUND:
                    raise ImageMissingError(f"The image {self._settings.image} isn't there; build it first.") from error
                raise
        await self._firewall.ensure()

    async def close(self) -> None:
        """See `Runtime.close`."""
        await self._guest.settle()
        await self._docker.close()
        await self._connector.close()

    # --- the engine's part ---

    async def _make(self, spec: DevServerSpec, config: dict[str, Any], on_stage: StageListener) -> ContainerStatus:
        await on_stage("creating")
        await asyncio.to_thread(self._make_cache, spec.ref.user_id)
        await self._networks.ensure(spec.ref.user_id)
        identifier = await self._create(spec.ref, config)
        await on_stage("starting")
        try:
            return await self._start(identifier)
        except ContainerMissingError as error:
            # Its network: it went, being empty, with another project of the user's a moment before this start.
            raise RuntimeUnavailableError("The dev server's network was removed while it was started.") from error

    async def _create(self, ref: ProjectRef, config: dict[str, Any]) -> str:
        """The id of the project's container, made now or by a launch at the same time."""
        name = container_name(ref)
        for candidate in (name, f"{name}-{self._settings.instance}"):
            with faults():
                try:
                    return (await self._docker.containers.create(config, name=candidate)).id
                except DockerError as error:
                    if error.status != CONFLICT:
                        raise
            found = await self._find(ref)
            if found is not None and _made_from(found, config):
                return str(found["Id"])
            if found is not None or await self._is_ours(candidate):
                raise NameTakenError(f"Another start of {name} is under way.")
        raise NameTakenError(f"Containers of others hold the names of {name}.")

    async def _is_ours(self, name: str) -> bool:
        """Whether a container of this installation, half made or half gone, has the name; True when it has gone."""
        with faults():
            try:
                shown = await self._container(name).show()
            except DockerError as error:
                if error.status == NOT_FOUND:
                    return True
                raise
        labels = shown["Config"].get("Labels") or {}
        return bool(labels.get(LABEL_INSTANCE) == self._settings.instance)

    async def _start(self, identifier: str) -> ContainerStatus:
        """Start it; one whose start fails, or isn't waited for, is removed unless it runs after all."""
        started = False
        try:
            with faults():
                async with asyncio.timeout(_START_S):
                    await self._start_once(identifier)
            started = True
        finally:
            if not started:
                await asyncio.shield(asyncio.ensure_future(self._remove_unstarted(identifier)))
        status = await self._show(identifier)
        if status is None:
            raise NameTakenError("The container was removed while it was started.")
        if status.address is not None:
            quieten(status.address[0])
        return status

    async def _start_once(self, identifier: str) -> None:
        try:
            await self._container(identifier).start()
        except DockerError as error:
            if error.status == NOT_FOUND and "no such container" in str(error.message).lower():
                raise NameTakenError("Another start of it failed at the same time, and removed it.") from error
            raise

    async def _remove_unstarted(self, identifier: str) -> None:
        try:
            status = await self._show(identifier)
            if status is not None and status.state is ContainerState.CREATED:
                await self._remove(identifier)
        except RuntimeUnavailableError:
            return  # nothing can be removed where nothing answers; the next launch finds it by its labels

    async def _remove(self, identifier: str) -> None:
        with faults():
            try:
                await self._container(identifier).delete(
                    force=True, v=True, timeout=aiohttp.ClientTimeout(total=_REMOVAL_S)
                )
            except DockerError as error:
                if error.status == NOT_FOUND:
                    return
                if error.status != CONFLICT:  # a removal is under way already
                    raise
        await self._await_removal(identifier)

    async def _await_removal(self, identifier: str) -> None:
        try:
            async with asyncio.timeout(_REMOVAL_S):
                while await self._show(identifier) is not None:  # noqa: ASYNC110 -- the engine is asked, not told by
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise RuntimeUnavailableError("The container engine doesn't finish a removal.") from None

    async def _find(self, ref: ProjectRef) -> dict[str, Any] | None:
        found = await self._list(identity_labels(self._settings.instance, ref))
        found.sort(key=lambda entry: (entry["State"] != "running", -entry["Created"]))
        return found[0] if found else None

    async def _list(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        wanted = [f"{key}={value}" for key, value in labels.items()]
        with faults():
            found = await self._docker.containers.list(all="1", filters=json.dumps({"label": wanted}))
        return [entry._container for entry in found if entry["State"] != "removing"]  # noqa: SLF001 -- its raw answer

    async def _required(self, ref: ProjectRef) -> ContainerStatus:
        status = await self.inspect(ref)
        if status is None:
            raise NameTakenError("The container was removed while it was looked at.")
        return status

    async def _show(self, identifier: str) -> ContainerStatus | None:
        with faults():
            try:
                return to_status(await self._container(identifier).show())
            except DockerError as error:
                if error.status == NOT_FOUND:
                    return None
                raise

    def _container(self, identifier: str) -> DockerContainer:
        return self._docker.containers.container(identifier)

    def _make_cache(self, user_id: int) -> None:
        """The user's package cache: a mount needs its folder, owned by who will write there."""
        folder = self._settings.projects_root / user_subpath(user_id) / "cache"
        if folder.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, self._containers.uid, self._containers.gid)


def to_status(shown: Mapping[str, Any]) -> ContainerStatus:
    """The engine's answer about one of our containers as the port tells it."""
    labels, state = shown["Config"]["Labels"], shown["State"]
    ref = ProjectRef(int(labels[LABEL_USER]), int(labels[LABEL_PROJECT]))
    now = _STATES.get(state["Status"], ContainerState.EXITED)
    running = now is ContainerState.RUNNING
    network = shown["NetworkSettings"]["Networks"].get(network_name(labels[LABEL_INSTANCE], ref.user_id)) or {}
    host = network.get("IPAddress")
    return ContainerStatus(
        ref=ref,
        id=shown["Id"],
        state=now,
        spec_hash=labels.get(LABEL_SPEC, ""),
        started_at=_time(state["StartedAt"]),
        exit_code=state["ExitCode"] if now is ContainerState.EXITED else None,
        out_of_memory=bool(state["OOMKilled"]) and not running,
        address=(host, _port(shown)) if running and host else None,
    )


def _port(shown: Mapping[str, Any]) -> int:
    environment = dict(entry.partition("=")[::2] for entry in shown["Config"].get("Env") or [])
    return int(environment.get("PORT", "0"))


def _time(value: str) -> datetime | None:
    """The engine's times have nanoseconds; its zero year means never."""
    if value.startswith("0001"):
        return None
    return datetime.fromisoformat(value[:19]).replace(tzinfo=UTC)


def _made_from(found: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return all(found["Labels"].get(key) == config["Labels"][key] for key in (LABEL_SPEC, LABEL_BUILD))


def _connector(url: str) -> aiohttp.BaseConnector:
    """Without a bound: a followed log or an open terminal holds its connection for hours."""
    if url.startswith("unix://"):
        return aiohttp.UnixConnector(url.removeprefix("unix://"), limit=0)
    return aiohttp.TCPConnector(limit=0)
