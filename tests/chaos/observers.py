"""Dev servers as somebody sees them who isn't the service: by the engine's own client, or in the process table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from docker.models.containers import Container
from kubernetes.client import AppsV1Api, CoreV1Api, NetworkingV1Api
from kubernetes.config import new_client_from_config

import docker
from workflows.contracts.names import LABEL_INSTANCE, LABEL_PROJECT, LABEL_USER

Json = dict[str, Any]


@dataclass(frozen=True)
class SeenServer:
    """One dev server. `id` and `started` together tell whether it was made or started anew."""

    id: str
    state: str
    started: str

    @property
    def runs(self) -> bool:
        return self.state == "running"


class Observer(Protocol):
    """What of a project is there."""

    def servers(self, user_id: int, project_id: int | None = None) -> Sequence[SeenServer]:
        """Of the project, or of all of the user's, in any state."""

    def leftovers(self, user_id: int) -> list[str]:
        """What is there of the user besides dev servers."""

    def crash(self, user_id: int, project_id: int) -> None:
        """Kill the project's dev server from outside."""

    def close(self) -> None:
        """Give connections back."""


class Engine:
    """A Docker engine, asked by the synchronous client."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.client = docker.from_env(timeout=30)

    def containers(self, user_id: int, project_id: int | None = None) -> list[Container]:
        labels = [f"{LABEL_INSTANCE}={self.instance}", f"{LABEL_USER}={user_id}"]
        if project_id is not None:
            labels.append(f"{LABEL_PROJECT}={project_id}")
        return list(self.client.containers.list(all=True, filters={"label": labels}, ignore_removed=True))

    def container(self, user_id: int, project_id: int) -> Container:
        [container] = self.containers(user_id, project_id)
        return container

    def servers(self, user_id: int, project_id: int | None = None) -> list[SeenServer]:
        found = self.containers(user_id, project_id)
        return [SeenServer(str(each.id), each.status, each.attrs["State"]["StartedAt"]) for each in found]

    def leftovers(self, user_id: int) -> list[str]:
        labels = [f"{LABEL_INSTANCE}={self.instance}", f"{LABEL_USER}={user_id}"]
        return [str(network.name) for network in self.client.networks.list(filters={"label": labels})]

    def crash(self, user_id: int, project_id: int) -> None:
        self.container(user_id, project_id).kill()

    def close(self) -> None:
        """Remove what the stack left standing: its containers are meant to outlive it."""
        labels: dict[str, str | list[str] | bool] = {"label": f"{LABEL_INSTANCE}={self.instance}"}
        for container in self.client.containers.list(all=True, filters=labels, ignore_removed=True):
            container.remove(force=True)
        for network in self.client.networks.list(filters=labels):
            network.remove()
        self.client.close()


class Machine:
    """This machine's processes: a dev server is known by the supervisor that leads it."""

    def __init__(self, data: Path) -> None:
        self._run = data.resolve() / "run" / "dev-servers"

    def servers(self, user_id: int, project_id: int | None = None) -> list[SeenServer]:
        prefix = f"user{user_id}-project" + ("" if project_id is None else str(project_id))
        return [
            SeenServer(path.name, "running", str([process.create_time() for process in found]))
            for path in sorted(self._run.glob(f"{prefix}*"))
            if path.is_dir() and (found := self._servers(path))
        ]

    def leftovers(self, user_id: int) -> list[str]:
        return [path.name for path in self._run.glob(f"user{user_id}-project*") if path.is_dir()]

    def crash(self, user_id: int, project_id: int) -> None:
        for process in self._servers(self._run / f"user{user_id}-project{project_id}"):
            process.kill()

    def close(self) -> None:
        """Nothing is open."""

    def _servers(self, path: Path) -> list[psutil.Process]:
        """The programs of the project's user, below whatever holds them."""
        try:
            supervisor = psutil.Process(int((path / "pid").read_text()))
            return [each for each in supervisor.children(recursive=True) if "http.server" in each.cmdline()]
        except (FileNotFoundError, psutil.NoSuchProcess, ValueError):
            return []


class Cluster:
    """A namespace of a cluster, asked by the synchronous client, whose node runs its containers on the local engine."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        self._namespace = namespace
        self._api = new_client_from_config(kubeconfig)
        self._engine = docker.from_env(timeout=30)

    def servers(self, user_id: int, project_id: int | None = None) -> list[SeenServer]:
        return [_seen(pod) for pod in self._pods(user_id, project_id)]

    def leftovers(self, user_id: int) -> list[str]:
        labels = f"{LABEL_USER}={user_id}"
        apps, core, net = AppsV1Api(self._api), CoreV1Api(self._api), NetworkingV1Api(self._api)
        lists = (
            apps.list_namespaced_deployment,
            core.list_namespaced_service,
            net.list_namespaced_ingress,
        )
        found = [self._plain(each(self._namespace, label_selector=labels)) for each in lists]
        return [item["metadata"]["name"] for items in found for item in items]

    def crash(self, user_id: int, project_id: int) -> None:
        [pod] = self._pods(user_id, project_id)
        labels = [f"io.kubernetes.pod.uid={pod['metadata']['uid']}", "io.kubernetes.docker.type=container"]
        [container] = self._engine.containers.list(filters={"label": labels})
        container.kill()

    def close(self) -> None:
        """Give connections back; the namespace goes with all that is in it."""
        self._api.close()
        self._engine.close()

    def _pods(self, user_id: int, project_id: int | None) -> list[Json]:
        labels = f"{LABEL_USER}={user_id}" + ("" if project_id is None else f",{LABEL_PROJECT}={project_id}")
        pods = self._plain(CoreV1Api(self._api).list_namespaced_pod(self._namespace, label_selector=labels))
        return [
            pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] != "Failed"
        ]

    def _plain(self, found: object) -> list[Json]:
        items: list[Json] = self._api.sanitize_for_serialization(found)["items"]
        return items


def _seen(pod: Json) -> SeenServer:
    """A container that the node has started anew is parked: its server has ended."""
    statuses = pod["status"].get("containerStatuses") or []
    running = statuses[0]["state"].get("running") if statuses and not statuses[0]["restartCount"] else None
    return SeenServer(pod["metadata"]["uid"], "running" if running else "other", str(running and running["startedAt"]))
