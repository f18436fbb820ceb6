"""The Kubernetes driver: a Deployment, a Service and an Ingress per dev server, in one namespace for all projects.

The Deployment's existence is the container's; that it wants a pod is that it is started. A pod whose server has ended
parks (`kubernetes_spec.PARKING`) until a worker has kept exit code and log: then it goes, with the memory that it
holds. Nothing is kept in this process but a watch that says when to look.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from activities.errors import (
    ContainerMissingError,
    NameTakenError,
    NotRunningError,
    ResourcesExhaustedError,
    RuntimeFault,
    RuntimeUnavailableError,
    SpecInvalidError,
)
from activities.ports import ContainerState, ContainerStatus, DevServerSpec, StageListener
from activities.runtimes.guest import Guest
from activities.runtimes.guest_runtime import GuestRuntime
from activities.runtimes.kubernetes_channels import PodChannel, open_exec
from activities.runtimes.kubernetes_client import Cluster
from activities.runtimes.kubernetes_logs import Logs
from activities.runtimes.kubernetes_objects import ProjectObjects
from activities.runtimes.kubernetes_spec import CONTAINER_NAME, POD_GRACE_S, KubernetesContainerSettings, selector
from activities.runtimes.kubernetes_start import Start
from activities.runtimes.kubernetes_status import (
    View,
    end_of,
    is_leaving,
    made_from,
    name_of,
    to_status,
    uid_of,
    wants_pod,
)
from activities.runtimes.kubernetes_watch import SharedWatch
from activities.runtimes.probing import answers_soon
from activities.runtimes.spec import PROJECT_FOLDER, check_environment
from workflows.contracts.names import ProjectRef, project_subpath, user_subpath

_TERMINALS: Final = "/tmp/.studio/terminals"  # noqa: S108 -- in the pod's memory
_HEALING_S: Final = 60.0
"""How long a pod that went away may take to have a successor that runs."""
_QUOTA_S: Final = 10.0
_QUOTA_PAUSE_S: Final = 1.0
_KEEPING_S: Final = 15.0
"""How long the end of a server is told later because what its pod knows is still being kept."""


@dataclass(frozen=True)
class KubernetesSettings:
    """Settings of the driver. `projects_root`: the volume of `containers.volume_claim`, as this process sees it.
    `kubeconfig` None: this pod's own service account.
    """

    projects_root: Path
    containers: KubernetesContainerSettings
    kubeconfig: Path | None = None


class KubernetesRuntime(GuestRuntime):
    """`Runtime` on a cluster. Make it with a running event loop; `close` it in the same."""

    name = "kubernetes"

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._cluster = Cluster(settings.kubeconfig, settings.containers.namespace)
        self._watch = SharedWatch(self._cluster, selector(settings.containers.instance))
        self._objects = ProjectObjects(self._cluster, self._watch, settings.containers)
        self._logs = Logs(self._cluster, self._objects, settings.projects_root)
        super().__init__(Guest(self, root=lambda _: PROJECT_FOLDER, terminals=lambda _: _TERMINALS))

    # --- one container per project ---

    async def launch(self, spec: DevServerSpec, *, on_stage: StageListener) -> ContainerStatus:
        """See `Runtime.launch`. What may pass by itself is left as it is, for the next try to go on from; a launch that
        is given up otherwise leaves nothing.
        """
        check_environment(spec.environment)
        await asyncio.to_thread(self._check_folders, spec.ref)
        view = await self._objects.look(spec.ref)
        right = view.deployment is not None and made_from(view.deployment, self._objects.manifest(spec))
        status = to_status(view) if right else None
        if status is not None and status.state is ContainerState.RUNNING:
            await self._objects.apply(spec, with_server=False)
            return status
        if not right:
            await on_stage("creating")
        if view.deployment is not None and not right:
            await self._objects.remove(spec.ref, uid=uid_of(view.deployment))
        await on_stage("starting")
        old = await self._clear(spec.ref, view, removed=not right)
        await self._logs.forget(spec.ref)
        return await self._bring_up(spec, old)

    async def stop(self, ref: ProjectRef, *, grace_s: float = POD_GRACE_S) -> None:
        """See `Runtime.stop`. The end of its log is kept. It has at most 5 s to end, see `ProjectObjects.want_none`."""
        view = await self._objects.look(ref)
        await self._logs.keep(ref, view)
        if end_of(view) is not None:
            await self._objects.let_go(ref)
        await self._objects.want_none(view, grace_s=grace_s)
        await self._objects.gone(ref)

    async def remove(self, ref: ProjectRef) -> None:
        """See `Runtime.remove`."""
        await self._objects.remove(ref)
        await self._objects.gone(ref)
        await self._logs.forget(ref)

    async def remove_user(self, user_id: int) -> None:
        """See `Runtime.remove_user`: a user's projects share nothing here."""

    async def inspect(self, ref: ProjectRef) -> ContainerStatus | None:
        """See `Runtime.inspect`."""
        return to_status(await self._objects.look(ref))

    async def discover(self) -> list[ContainerStatus]:
        """See `Runtime.discover`."""
        statuses = (to_status(view) for view in await self._objects.look_at_all())
        return [status for status in statuses if status is not None]

    async def wait(self, ref: ProjectRef) -> ContainerStatus | None:
        """See `Runtime.wait`. A pod that is lost (deleted, evicted, its node gone) is waited for anew, for a minute.
        The pod of a server that has ended is let go.
        """
        heals_until: float | None = None
        with self._watch.bell(ref) as bell:
            while True:
                seen = bell.view()
                late = heals_until is not None and time.monotonic() >= heals_until
                if late or seen is None or not _runs(seen):
                    view = await self._objects.look(ref)
                    status = to_status(view)
                    if status is None or status.state is ContainerState.EXITED:
                        await self._let_go(ref, view)
                        return status
                    if status.state is ContainerState.CREATED:
                        if late:
                            return status
                        heals_until = heals_until or await self._begin_healing(ref)
                    else:
                        heals_until = None
                else:
                    heals_until = None
                await bell.rung(None if heals_until is None else max(0.0, heals_until - time.monotonic()))

    async def probe(self, ref: ProjectRef, port: int) -> bool:
        """See `Runtime.probe`. An answer counts once the cluster confirms whose address it came from."""
        seen = self._watch.view(ref)
        status = to_status(seen if seen is not None else await self._objects.look(ref))
        if status is None or status.address is None or not await answers_soon(status.address[0], port):
            return False
        now = await self.inspect(ref)
        return now is not None and now.address == status.address

    async def logs(self, ref: ProjectRef, *, tail: int = 200, follow: bool = False) -> AsyncIterator[bytes]:
        """See `Runtime.logs`."""
        async for piece in self._logs.read(ref, tail=tail, follow=follow):
            yield piece

    # --- beside the server: see GuestRuntime ---

    @asynccontextmanager
    async def open_channel(self, ref: ProjectRef) -> AsyncIterator[PodChannel]:
        """The guest program beside the project's server; for `Guest`."""
        view = await self._objects.look(ref)
        status = to_status(view)
        if status is None:
            raise ContainerMissingError("This project has no container; start it first.")
        if status.state is not ContainerState.RUNNING or view.pod is None:
            raise NotRunningError("This project's dev server doesn't run; start it first.")
        async with open_exec(self._cluster, name_of(view.pod), CONTAINER_NAME) as channel:
            yield channel

    async def ready(self) -> None:
        """See `Runtime.ready`."""
        await self._objects.reach()

    async def close(self) -> None:
        """See `Runtime.close`."""
        await self._guest.settle()
        await self._watch.close()
        await self._cluster.close()

    async def _begin_healing(self, ref: ProjectRef) -> float:
        """The time by which a pod that is lost has to have a successor."""
        until = time.monotonic() + _HEALING_S
        await self._objects.tidy(ref)
        return until

    async def _let_go(self, ref: ProjectRef, view: View) -> None:
        """Keep what the pod of an ended server knows, then have it go. What can't be done is left to the next `stop`:
        that the server has ended is told all the same.
        """
        with contextlib.suppress(RuntimeFault, TimeoutError):
            async with asyncio.timeout(_KEEPING_S):
                if end_of(view) is not None and await self._logs.keep(ref, view):
                    await self._objects.let_go(ref)

    # --- starting ---

    async def _bring_up(self, spec: DevServerSpec, old: frozenset[str]) -> ContainerStatus:
        """Bring it up. A quota that is used up is asked again for a while: pods that have just ended still count."""
        patient_until = time.monotonic() + _QUOTA_S
        while True:
            try:
                return await self._try_once(spec, old)
            except ResourcesExhaustedError:
                if time.monotonic() > patient_until:
                    raise
                await asyncio.sleep(_QUOTA_PAUSE_S)

    async def _try_once(self, spec: DevServerSpec, old: frozenset[str]) -> ContainerStatus:
        lasting = True
        try:
            await self._objects.apply(spec, with_server=True)
            outcome = await Start(self._objects, self._watch, spec.ref, old).outcome()
            if isinstance(outcome, ContainerStatus):
                return outcome
            lasting = not outcome.passes
            raise outcome.fault
        except RuntimeFault as fault:
            if lasting and not isinstance(fault, RuntimeUnavailableError | NameTakenError):
                await self._objects.remove(spec.ref)
            raise

    async def _clear(self, ref: ProjectRef, view: View, *, removed: bool) -> frozenset[str]:
        """Have former pods out of the way; the uids of those that mustn't be taken for the new one."""
        ended = end_of(view) is not None
        if ended and not removed:
            # By way of the Deployment, so that a `wait` that is about to do the same comes too late once it is started.
            await self._objects.let_go(ref)
        if removed or ended or not wants_pod(view):
            old = frozenset(map(uid_of, view.pods))
            if old:
                await self._objects.gone(ref, old)
            return old
        return frozenset(uid_of(pod) for pod in view.pods if is_leaving(pod))

    def _check_folders(self, ref: ProjectRef) -> None:
        """The project's folder is there, and the user's cache: the kubelet would make what is missing, as root."""
        root, containers = self._settings.projects_root, self._settings.containers
        if not (root / project_subpath(ref)).is_dir():
            raise SpecInvalidError("The project's folder isn't there on the projects' volume, or isn't a folder.")
        cache = root / user_subpath(ref.user_id) / "cache"
        if not cache.is_dir():
            try:
                cache.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise SpecInvalidError("The owner's cache on the projects' volume isn't a folder.") from error
            if os.geteuid() == 0:
                os.chown(cache, containers.uid, containers.gid)


def _runs(view: View) -> bool:
    status = to_status(view)
    return status is not None and status.state is ContainerState.RUNNING
