"""Waiting for a server to come up, or for the cause that keeps it from that."""

import time
from dataclasses import replace
from typing import Final

from activities.errors import NameTakenError, RuntimeUnavailableError
from activities.ports import ContainerState, ContainerStatus
from activities.runtimes.kubernetes_faults import message_of
from activities.runtimes.kubernetes_objects import ProjectObjects
from activities.runtimes.kubernetes_status import (
    Obstacle,
    View,
    container_of,
    obstacle_of,
    to_status,
    wants_pod,
    without,
)
from activities.runtimes.kubernetes_watch import SharedWatch
from workflows.contracts.names import ProjectRef

_PATIENCE_S: Final = 10.0
"""How long a cause that may pass (no room on the nodes, a volume that isn't there) is borne before it is told."""
_SILENCE_S: Final = 8.0
"""A container that is being made for longer than this may wait for a volume: events are asked."""
_UNBEGUN_S: Final = 60.0
"""How long nothing may come of it though nothing hinders it. A large image takes longer: the next try waits on."""
_TURN_S: Final = 2.5
_LOOK_S: Final = 30.0
"""A watch that has gone deaf is noticed this late."""


class Start:
    """One launch that has asked for a pod and waits for it. `old`: uids of pods that don't count."""

    def __init__(self, objects: ProjectObjects, watch: SharedWatch, ref: ProjectRef, old: frozenset[str]) -> None:
        self._objects = objects
        self._watch = watch
        self._ref = ref
        self._old = old
        self._began = self._looked_at = time.monotonic()
        self._hindered_since: float | None = None

    async def outcome(self) -> ContainerStatus | Obstacle:
        """The server that runs or has ended already, or what keeps it from coming up: a minute and a half at most."""
        with self._watch.bell(self._ref) as bell:
            while True:
                seen = bell.view()
                deaf = time.monotonic() - self._looked_at > _LOOK_S
                if seen is None or deaf or await self._judged(seen) is not None:
                    self._looked_at = time.monotonic()
                    if (found := await self._judged(await self._objects.look(self._ref))) is not None:
                        return found
                await bell.rung(_TURN_S)

    async def _judged(self, view: View) -> ContainerStatus | Obstacle | None:
        """What the view says of the start, None when it says nothing yet."""
        view = without(view, self._old)
        status = to_status(view)
        if status is None or not wants_pod(view):
            return Obstacle(NameTakenError("The dev server was stopped or removed while it was started."), passes=True)
        if status.state is not ContainerState.CREATED:
            return status
        obstacle = obstacle_of(view)
        if obstacle is None and view.pod is not None and time.monotonic() - self._began > _SILENCE_S:
            obstacle = await self._objects.mount_trouble(view.pod)
        if obstacle is None:
            self._hindered_since = None
            return unbegun(view) if time.monotonic() - self._began > _UNBEGUN_S else None
        if not obstacle.passes:
            return obstacle
        if self._hindered_since is None:
            self._hindered_since = time.monotonic()
        if time.monotonic() - self._hindered_since < _PATIENCE_S:
            return None
        return replace(obstacle, passes=obstacle.fault.retryable)  # what isn't tried again is given up


def unbegun(view: View) -> Obstacle:
    """What a launch that nothing hinders waits for: somebody in the cluster whose turn it is doesn't act."""
    pod = view.pod
    if pod is None:
        text = "The cluster makes no pod for the dev server; its controllers may be away."
    elif not (node := pod["spec"].get("nodeName")):
        text = "The cluster looks for no node for the dev server; its scheduler may be away."
    elif not (pod.get("status") or {}).get("startTime"):
        text = f"The node {node} doesn't take up the dev server; its kubelet may be away."
    else:
        waiting = (container_of(pod).get("state") or {}).get("waiting") or {}
        text = f"The node {node} is slow to begin the dev server's container: {message_of(waiting)}"
    return Obstacle(RuntimeUnavailableError(text), passes=True)
