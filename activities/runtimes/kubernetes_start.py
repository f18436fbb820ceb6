"""Waiting for a server to come up, or for the cause that keeps it from that."""

import time
from typing import Final

from activities.errors import NameTakenError
from activities.ports import ContainerState, ContainerStatus
from activities.runtimes.kubernetes_objects import ProjectObjects
from activities.runtimes.kubernetes_status import Obstacle, View, obstacle_of, to_status, wants_pod, without
from activities.runtimes.kubernetes_watch import SharedWatch
from workflows.contracts.names import ProjectRef

_PATIENCE_S: Final = 10.0
"""How long a cause that may pass (no room on the nodes, a volume that isn't there) is borne before it is told."""
_SILENCE_S: Final = 8.0
"""A container that is being made for longer than this may wait for a volume: events are asked."""
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
        """The server that runs or has ended already, or what keeps it from coming up. Its caller bounds it."""
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
        if obstacle is None or not obstacle.passes:
            self._hindered_since = None
            return obstacle
        if self._hindered_since is None:
            self._hindered_since = time.monotonic()
        return obstacle if time.monotonic() - self._hindered_since >= _PATIENCE_S else None
