"""One project's objects in the cluster: looked at, made, scaled, and gone for certain."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from activities.errors import (
    NameTakenError,
    ResourcesExhaustedError,
    RuntimeFault,
    RuntimeUnavailableError,
    SpecInvalidError,
)
from activities.ports import DevServerSpec
from activities.runtimes.kubernetes_client import Cluster, Kind, Object
from activities.runtimes.kubernetes_faults import CONFLICT, RefusedError, faults, message_of
from activities.runtimes.kubernetes_spec import (
    END_ANNOTATION,
    POD_GRACE_S,
    KubernetesContainerSettings,
    deployment,
    ingress,
    selector,
    service,
)
from activities.runtimes.kubernetes_status import (
    Obstacle,
    View,
    end_of,
    has_parked,
    is_over,
    name_of,
    ref_of,
    uid_of,
    view_of,
    wants_pod,
)
from activities.runtimes.kubernetes_watch import SharedWatch
from workflows.contracts.names import ProjectRef, kubernetes_name

_STUCK_S: Final = 30.0
"""A pod has 5 s to end; one that is still there after this has lost its node, or its node's kubelet."""
_FORCED_S: Final = 10.0
_PARKING_S: Final = 5.0
"""How long the pod of an ended server may take to park; one that parks later goes later."""
_TRIES: Final = 10
"""How often a change begins anew because somebody else has changed the Deployment: its status changes now and then."""
_EVENTS_FRESH_S: Final = 5.0
_EVENTS: Final = 200
_MOUNT_TROUBLE: Final = ("FailedMount", "FailedAttachVolume")
_MOUNT_REFUSED: Final = ("not a directory", "no such file", "permission denied", "access denied", "type check failed")


class ProjectObjects:
    """Deployment, Service, Ingress and pods of projects. Raises `RuntimeFault`s."""

    def __init__(self, cluster: Cluster, watch: SharedWatch, settings: KubernetesContainerSettings) -> None:
        self._cluster = cluster
        self._watch = watch
        self._settings = settings
        self._troubles: dict[str, str] = {}
        self._troubles_read_at = -_EVENTS_FRESH_S

    async def look(self, ref: ProjectRef) -> View:
        """The project's objects now, read from the server."""
        with faults():
            found, (pods, _) = await asyncio.gather(
                self._cluster.get(Kind.DEPLOYMENT, kubernetes_name(ref)),
                self._cluster.list(Kind.POD, labels=selector(self._settings.instance, ref)),
            )
        # Another installation's in our namespace: its names are ours.
        return view_of(None if found is None or ref_of(found) != ref else found, pods)

    async def look_at_all(self) -> list[View]:
        """Every project of this installation that has a Deployment."""
        labels = selector(self._settings.instance)
        with faults():
            (deployments, _), (pods, _) = await asyncio.gather(
                self._cluster.list(Kind.DEPLOYMENT, labels=labels), self._cluster.list(Kind.POD, labels=labels)
            )
        by_ref: dict[ProjectRef | None, list[Object]] = {}
        for pod in pods:
            by_ref.setdefault(ref_of(pod), []).append(pod)
        return [view_of(found, by_ref.get(ref_of(found), [])) for found in deployments]

    def manifest(self, spec: DevServerSpec) -> dict[str, Any]:
        """The Deployment that the spec asks for."""
        return deployment(spec, self._settings)

    async def apply(self, spec: DevServerSpec, *, with_server: bool) -> None:
        """Have the project's way in, and the server itself: one pod of it is wanted."""
        kinds = [(Kind.SERVICE, service(spec, self._settings)), (Kind.INGRESS, ingress(spec, self._settings))]
        if with_server:
            kinds.append((Kind.DEPLOYMENT, self.manifest(spec)))
        with faults():
            await asyncio.gather(*(self._cluster.apply(kind, manifest) for kind, manifest in kinds))

    async def reach(self) -> None:
        """Raise a fault that says why when the namespace can't be looked at."""
        with faults():
            await self._cluster.list(Kind.DEPLOYMENT, labels=selector(self._settings.instance), limit=1)

    async def want_none(self, view: View, *, grace_s: float) -> None:
        """Scale the server down to nothing. Its pod has the grace, in whole seconds and at least one (none would be
        a deletion that doesn't wait for the end), at most its own: whoever comes first sets it, the Deployment's
        controllers or we, and the other can only shorten it.
        """
        if view.deployment is None:
            return
        grace = max(1, round(grace_s))
        with faults():
            await self._cluster.merge(Kind.DEPLOYMENT, name_of(view.deployment), {"spec": {"replicas": 0}})
            for pod in view.pods if grace < POD_GRACE_S else ():
                await self._cluster.delete(Kind.POD, name_of(pod), uid=uid_of(pod), grace_s=grace)

    async def let_go(self, ref: ProjectRef) -> None:
        """Scale a server that has ended by itself down to nothing, how it ended being written down in the same step.
        Nothing happens to one that runs or was started anew, also at this moment.
        """
        # A kubelet (before 1.22) that begins a container again forgets a deletion that comes meanwhile for a minute.
        await self.until(ref, lambda view: end_of(view) is None or has_parked(view), _PARKING_S)
        for _ in range(_TRIES):
            with faults():
                found = await self._cluster.get(Kind.DEPLOYMENT, kubernetes_name(ref))
                # Read after it: an ended pod is this version's, or the version is refused below.
                pods, _ = await self._cluster.list(Kind.POD, labels=selector(self._settings.instance, ref))
            view = view_of(None if found is None or ref_of(found) != ref else found, pods)
            end = end_of(view)
            if view.deployment is None or end is None or await self._write_end(view.deployment, end):
                return
        raise NameTakenError("Others keep changing the dev server's Deployment.")

    async def _write_end(self, found: Object, end: str) -> bool:
        """Whether it could be written on the Deployment as it was found."""
        version = {key: found["metadata"][key] for key in ("uid", "resourceVersion")}
        change = {"metadata": version | {"annotations": {END_ANNOTATION: end}}, "spec": {"replicas": 0}}
        with faults():
            try:
                await self._cluster.merge(Kind.DEPLOYMENT, name_of(found), change)
            except RefusedError as error:
                if error.status != CONFLICT:
                    raise
                return False
        return True

    async def tidy(self, ref: ProjectRef) -> None:
        """Remove pods that were given up (evicted), but the last: it tells an operator why. A cluster keeps thousands,
        and a server that fills its node's disk again and again makes as many.
        """
        with faults():
            pods, _ = await self._cluster.list(
                Kind.POD, labels=selector(self._settings.instance, ref), fields="status.phase=Failed"
            )
            for pod in sorted(pods, key=lambda one: str(one["metadata"]["creationTimestamp"]))[:-1]:
                await self._cluster.delete(Kind.POD, name_of(pod), uid=uid_of(pod))

    async def remove(self, ref: ProjectRef, *, uid: str | None = None) -> None:
        """Remove all of it; with `uid` its Deployment alone, while it is that one. Pods follow by themselves."""
        name = kubernetes_name(ref)
        with faults():
            await self._cluster.delete(Kind.DEPLOYMENT, name, uid=uid)
            if uid is None:
                await asyncio.gather(*(self._cluster.delete(kind, name) for kind in (Kind.SERVICE, Kind.INGRESS)))

    async def gone(self, ref: ProjectRef, which: frozenset[str] | None = None) -> None:
        """Return when nothing runs in those pods (by uid; None: all). One that doesn't end is struck off by force.

        With None also when the server is wanted again: then it isn't ours to wait for.
        """
        if await self._gone_within(ref, which, _STUCK_S):
            return
        for pod in self._left(await self.look(ref), which):
            with faults():
                await self._cluster.delete(Kind.POD, name_of(pod), uid=uid_of(pod), grace_s=0)
        if not await self._gone_within(ref, which, _FORCED_S):
            raise RuntimeUnavailableError("The cluster doesn't finish the removal of the dev server's pod.")

    async def mount_trouble(self, pod: Object) -> Obstacle | None:
        """What the kubelet says of a volume that it can't mount for that pod. Asked for all pods at once, seldom."""
        if time.monotonic() - self._troubles_read_at >= _EVENTS_FRESH_S:
            self._troubles_read_at = time.monotonic()
            with faults():
                lists = await asyncio.gather(*(self._events(reason) for reason in _MOUNT_TROUBLE))
            self._troubles = {
                str(event["involvedObject"].get("uid")): message_of(event) for events in lists for event in events
            }
        message = self._troubles.get(uid_of(pod))
        return None if message is None else Obstacle(_mount_fault(message), passes=True)

    async def _events(self, reason: str) -> list[Object]:
        fields = f"involvedObject.kind=Pod,reason={reason}"
        events, _ = await self._cluster.list(Kind.EVENT, fields=fields, limit=_EVENTS)
        return events

    async def _gone_within(self, ref: ProjectRef, which: frozenset[str] | None, within_s: float) -> bool:
        def over(view: View) -> bool:
            return not self._left(view, which) or (which is None and wants_pod(view))

        return await self.until(ref, over, within_s)

    async def until(self, ref: ProjectRef, condition: Callable[[View], bool], within_s: float | None) -> bool:
        """Whether the condition came to hold in time (None: whenever it does), by the server's own word."""
        deadline = None if within_s is None else time.monotonic() + within_s
        with self._watch.bell(ref) as bell:
            while True:
                seen = bell.view()
                if (seen is None or condition(seen)) and condition(await self.look(ref)):
                    return True
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not await bell.rung(left):
                    return condition(await self.look(ref))

    def _left(self, view: View, which: frozenset[str] | None) -> list[Object]:
        return [pod for pod in view.pods if (which is None or uid_of(pod) in which) and not is_over(pod)]


def _mount_fault(message: str) -> RuntimeFault:
    text = f"The projects' volume can't be mounted; see to the claim and its volume: {message}"
    if any(word in message.lower() for word in _MOUNT_REFUSED):
        return SpecInvalidError(text)
    return ResourcesExhaustedError(text)
