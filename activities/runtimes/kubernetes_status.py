"""What a project's Deployment and pods say about its dev server: pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from activities.errors import (
    ImageMissingError,
    ResourcesExhaustedError,
    RuntimeFault,
    RuntimeUnavailableError,
    SpecInvalidError,
)
from activities.ports import ContainerState, ContainerStatus
from activities.runtimes.kubernetes_client import FIELD_MANAGER, Object
from activities.runtimes.kubernetes_faults import message_of, quota_exceeded
from activities.runtimes.kubernetes_spec import CONTAINER_NAME, END_ANNOTATION
from workflows.contracts.names import LABEL_BUILD, LABEL_PROJECT, LABEL_SPEC, LABEL_USER, ProjectRef

_OUT_OF_MEMORY: Final = "OOMKilled"
_END: Final = {"exitCode": int, "reason": str, "startedAt": str, "finishedAt": str}
_CONTROLLERS: Final = {FIELD_MANAGER, "kube-controller-manager"}
_NO_IMAGE: Final = {"ErrImageNeverPull", "InvalidImageName", "ImagePullBackOff", "ErrImagePull"}
_REFUSED: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_BUSY: Final = ("deadline exceeded", "timeout", "timed out")
_FULL: Final = ("no space left", "cannot allocate", "too many open files")
_UNBOUND: Final = ("persistentvolumeclaim", "unbound", "volume node affinity", "volumebinding")


@dataclass(frozen=True)
class View:
    """A project's objects at one moment. `pods` without those that have failed for good (evicted, node gone)."""

    deployment: Object | None
    pods: tuple[Object, ...] = ()

    @property
    def pod(self) -> Object | None:
        """The server's pod: not on its way out, the newest."""
        staying = [pod for pod in self.pods if not is_leaving(pod)]
        return max(staying, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


@dataclass(frozen=True)
class Obstacle:
    """Why a launch gets nowhere. `passes`: it may be over in a moment, without anything being made anew."""

    fault: RuntimeFault
    passes: bool = False


def view_of(deployment: Object | None, pods: Sequence[Object]) -> View:
    """The project's view, from its Deployment and what its selector finds."""
    return View(deployment, tuple(pod for pod in pods if not _has_failed(pod)))


def without(view: View, uids: frozenset[str]) -> View:
    """The view as if these pods weren't there."""
    return View(view.deployment, tuple(pod for pod in view.pods if uid_of(pod) not in uids))


def wants_pod(view: View) -> bool:
    """Whether the Deployment is there and started."""
    return view.deployment is not None and bool(view.deployment["spec"].get("replicas"))


def ref_of(found: Object) -> ProjectRef | None:
    """Whose an object is, by its labels; None when they make no sense."""
    labels = found["metadata"].get("labels") or {}
    try:
        return ProjectRef(int(labels[LABEL_USER]), int(labels[LABEL_PROJECT]))
    except (KeyError, ValueError):
        return None


def uid_of(found: Object) -> str:
    """The object's own identity: another one of its name has another."""
    return str(found["metadata"]["uid"])


def name_of(found: Object) -> str:
    """Its name in the namespace."""
    return str(found["metadata"]["name"])


def is_leaving(found: Object) -> bool:
    """Whether its deletion has begun."""
    return "deletionTimestamp" in found["metadata"]


def is_over(pod: Object) -> bool:
    """Whether the pod is on its way out and nothing of it runs any more: the rest is the kubelet's tidying up."""
    begun = (pod.get("status") or {}).get("phase") != "Pending"
    return is_leaving(pod) and begun and "running" not in (container_of(pod).get("state") or {})


def made_from(found: Object, manifest: Mapping[str, Any]) -> bool:
    """Whether the Deployment is what the manifest asks for, and nobody else has edited it."""
    annotations = found["metadata"].get("annotations") or {}
    wanted = manifest["metadata"]["annotations"]
    if any(annotations.get(key) != wanted[key] for key in (LABEL_SPEC, LABEL_BUILD)):
        return False
    return not any(
        entry.get("manager") not in _CONTROLLERS and "f:spec" in (entry.get("fieldsV1") or {})
        for entry in found["metadata"].get("managedFields") or []
    )


def to_status(view: View) -> ContainerStatus | None:
    """The port's view of it; None without a Deployment."""
    deployment = view.deployment
    ref = None if deployment is None else ref_of(deployment)
    if deployment is None or ref is None:
        return None
    pod = view.pod if wants_pod(view) else None
    running, ended = _runs(pod) if wants_pod(view) else ({}, _written_end(deployment))
    state = _state(deployment, running, ended)
    return ContainerStatus(
        ref=ref,
        id=uid_of(deployment),
        state=state,
        spec_hash=str((deployment["metadata"].get("annotations") or {}).get(LABEL_SPEC, "")),
        started_at=_time((ended or running or {}).get("startedAt")),
        exit_code=None if not ended else ended.get("exitCode"),
        out_of_memory=bool(ended) and ended.get("reason") == _OUT_OF_MEMORY,
        address=_address(pod) if pod is not None and state is ContainerState.RUNNING else None,
        lingering=pod is not None and state is ContainerState.EXITED,
    )


def end_of(view: View) -> str | None:
    """How the server ended whose pod is still wanted, as `END_ANNOTATION` tells it; None when there is no such pod."""
    _, ended = _runs(view.pod if wants_pod(view) else None)
    return json.dumps({key: ended[key] for key in _END if ended.get(key) is not None}) if ended else None


def has_parked(view: View) -> bool:
    """Whether the server's pod has begun its container again, and it runs."""
    container = {} if view.pod is None else container_of(view.pod)
    return bool(container.get("restartCount")) and "running" in (container.get("state") or {})


def container_of(pod: Object) -> Mapping[str, Any]:
    """The kubelet's word on the server's container; empty before it has looked."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status["name"] == CONTAINER_NAME:
            return dict(status)
    return {}


def obstacle_of(view: View) -> Obstacle | None:
    """What keeps the server from coming up, as far as the objects themselves tell."""
    pod = view.pod
    if pod is None:
        return None if view.deployment is None else _refused_pod(view.deployment)
    waiting = (container_of(pod).get("state") or {}).get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), message_of(waiting)
    if reason in _NO_IMAGE:
        return Obstacle(ImageMissingError(f"The dev server image can't be had ({reason}): {message}"))
    if reason in _REFUSED:
        return _refused_container(message)
    return _unplaced(pod)


def _refused_container(message: str) -> Obstacle:
    lowered = message.lower()
    if any(word in lowered for word in _BUSY):
        return Obstacle(RuntimeUnavailableError(f"The node is too busy for the dev server: {message}"), passes=True)
    if any(word in lowered for word in _FULL):
        return Obstacle(ResourcesExhaustedError(f"The node has no room for the dev server: {message}"))
    return Obstacle(SpecInvalidError(f"The node refuses the dev server's container: {message}"))


def _refused_pod(deployment: Object) -> Obstacle | None:
    """Why no pod is made: the Deployment is told by its ReplicaSet."""
    for condition in (deployment.get("status") or {}).get("conditions") or []:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            message = message_of(condition)
            if "exceeded quota" in message:
                return Obstacle(quota_exceeded(message))
            return Obstacle(SpecInvalidError(f"The cluster refuses the dev server's pod: {message}"))
    return None


def _unplaced(pod: Object) -> Obstacle | None:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            message = message_of(condition)
            if any(word in message.lower() for word in _UNBOUND):
                text = f"The projects' volume isn't there for it; see to the claim in k8s/projects: {message}"
            else:
                text = f"No node takes the dev server: {message}"
            return Obstacle(ResourcesExhaustedError(text), passes=True)
    return None


def _state(deployment: Object, running: Mapping[str, Any], ended: Mapping[str, Any]) -> ContainerState:
    if ended or not deployment["spec"].get("replicas"):
        return ContainerState.EXITED
    return ContainerState.RUNNING if running else ContainerState.CREATED


def _runs(pod: Object | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """How the pod's first run goes on, or how it ended: one of the two is empty. Later runs only keep its log."""
    container = {} if pod is None else container_of(pod)
    state, before = container.get("state") or {}, container.get("lastState") or {}
    if container.get("restartCount"):
        return {}, before.get("terminated") or {"reason": "Unknown"}
    if "terminated" in state:
        return {}, state["terminated"]
    return state.get("running") or {}, {}


def _written_end(deployment: Object) -> Mapping[str, Any]:
    """What `END_ANNOTATION` tells; empty when there is none, or somebody else has written it."""
    try:
        end = json.loads((deployment["metadata"].get("annotations") or {}).get(END_ANNOTATION) or "{}")
        _time(end.get("startedAt"))
    except (ValueError, TypeError, AttributeError):
        return {}
    return end if all(isinstance(end.get(key, kind()), kind) for key, kind in _END.items()) else {}


def _has_failed(pod: Object) -> bool:
    """Whether its node has given it up: the Deployment makes another."""
    return (pod.get("status") or {}).get("phase") == "Failed"


def _address(pod: Object) -> tuple[str, int] | None:
    host = (pod.get("status") or {}).get("podIP")
    ports = [port for entry in pod["spec"]["containers"] for port in entry.get("ports") or []]
    return (str(host), int(ports[0]["containerPort"])) if host and ports else None


def _time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)
