"""Seconds from a command to the first 200 of the page: the API with its preview, against the bare engine.

`python -m bench.start_cost` needs a Docker engine and the dev-server image. Start: `POST /start` of a new
project → 200 through the preview, against `docker run` of the same image, command and bounds. Wake: the same for a
stopped project, against `docker start`. The two take turns; the ratios are medians of the pairs.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from docker.models.containers import Container

import docker
from tests.workers.stacks import RunningStack, stack_environment
from workers.stack.data_directory import DataDirectory
from workflows.contracts.names import LABEL_INSTANCE, LABEL_PROJECT

ROUNDS = 7
TARGET = 1.25
TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.02
"""A denser look would take the cores from the server that is to come up: each one goes through proxy and gate."""
PEER = "studio-bench-peer"


def until_200(get: Callable[[], httpx.Response]) -> None:
    """Ask until the page is there."""
    end = time.perf_counter() + TIMEOUT_S
    while time.perf_counter() < end:
        try:
            if get().status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(LOOK_EVERY_S)
    raise TimeoutError("no 200 in time")


class Service:
    """The API of a stack, as a client has it."""

    def __init__(self, stack: RunningStack) -> None:
        self._http = httpx.Client(base_url=stack.api, timeout=TIMEOUT_S)
        self._preview = httpx.Client(base_url=f"http://127.0.0.1:{stack.environment['PREVIEW_PORT']}", timeout=5)
        body = {"email": "bench@example.com", "password": "correct horse battery"}
        answer = self._http.post("/api/auth/register", json=body).raise_for_status().json()
        self.user_id = int(answer["user"]["id"])
        self._http.headers["Authorization"] = f"Bearer {answer['access_token']}"

    def create(self, **source: str) -> dict[str, Any]:
        """A provisioned project, never started, with its preview's host and token."""
        body = {"name": "bench", **source}
        waiting = {"Prefer": "wait=60"}
        project = self._http.post("/api/projects", json=body, headers=waiting).raise_for_status().json()
        token = self._http.post(f"/api/projects/{project['id']}/preview-token").raise_for_status().json()
        host = token["url"].split("/")[2]
        return {"id": project["id"], "preview": {"Host": host, "X-Preview-Token": token["token"]}}

    def until_page(self, project: dict[str, Any]) -> None:
        """Return with the page's first 200, as its owner sees it."""
        until_200(lambda: self._preview.get("/", headers=project["preview"]))

    def start(self, project: dict[str, Any]) -> float:
        """Seconds from the command to the page."""
        began = time.perf_counter()
        self._http.post(f"/api/projects/{project['id']}/start").raise_for_status()
        self.until_page(project)
        return time.perf_counter() - began

    def stop(self, project: dict[str, Any]) -> None:
        """Stop it, and wait for that."""
        self._http.post(f"/api/projects/{project['id']}/stop", headers={"Prefer": "wait=60"}).raise_for_status()

    def delete(self, project: dict[str, Any]) -> None:
        """Remove it, and wait for that."""
        self._http.delete(f"/api/projects/{project['id']}", headers={"Prefer": "wait=60"}).raise_for_status()


class Peer:
    """The same container without the service: made by the engine's own client from the settings of a real one."""

    def __init__(self, engine: docker.DockerClient, model: Container, folder: Path) -> None:
        self._engine = engine
        self._settings = model.attrs
        self._folder = folder

    def run(self) -> float:
        """Seconds from `docker run` to the page; the container stays."""
        self.remove()
        shutil.rmtree(self._folder / "node_modules", ignore_errors=True)
        began = time.perf_counter()
        subprocess.run(self._command(), check=True, stdout=subprocess.DEVNULL)
        return self._until_page(began)

    def start(self) -> float:
        """Seconds from `docker start` to the page."""
        began = time.perf_counter()
        subprocess.run(["docker", "start", PEER], check=True, stdout=subprocess.DEVNULL)
        return self._until_page(began)

    def stop(self) -> None:
        """Stop it and keep it."""
        subprocess.run(["docker", "stop", "--time", "5", PEER], check=True, stdout=subprocess.DEVNULL)

    def remove(self) -> None:
        """Remove it, if it is there."""
        subprocess.run(["docker", "rm", "-f", PEER], check=False, capture_output=True)

    def _until_page(self, began: float) -> float:
        networks = self._engine.containers.get(PEER).attrs["NetworkSettings"]["Networks"]
        address = next(iter(networks.values()))["IPAddress"]
        with httpx.Client(timeout=5) as client:
            until_200(lambda: client.get(f"http://{address}:{self._port()}/"))
        return time.perf_counter() - began

    def _port(self) -> str:
        variables: list[str] = self._settings["Config"]["Env"]
        return next(item for item in variables if item.startswith("PORT=")).removeprefix("PORT=")

    def _command(self) -> list[str]:
        config, host = self._settings["Config"], self._settings["HostConfig"]
        mounts = [f"type=bind,source={m['Source']},target={m['Target']}" for m in host["Mounts"]]
        mounts[0] = f"type=bind,source={self._folder},target={config['WorkingDir']}"
        words = ["docker", "run", "--detach", "--name", PEER, "--user", config["User"], "--init", "--read-only"]
        words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", host["NetworkMode"]]
        words += ["--memory", str(host["Memory"]), "--memory-swap", str(host["MemorySwap"])]
        words += ["--cpus", str(host["NanoCpus"] / 1e9), "--pids-limit", str(host["PidsLimit"])]
        words += ["--workdir", config["WorkingDir"], "--entrypoint", config["Entrypoint"][0]]
        for item in config["Env"]:
            words += ["--env", item]
        for target, options in host["Tmpfs"].items():
            words += ["--tmpfs", f"{target}:{options}"]
        for mount in mounts:
            words += ["--mount", mount]
        return [*words, config["Image"], *config["Entrypoint"][1:], *config["Cmd"]]


def measure(stack: RunningStack) -> list[dict[str, Any]]:
    """A row for the start and one for the wake."""
    engine = docker.from_env()
    service = Service(stack)
    model = service.create()
    service.start(model)  # the user's network, and everything that is done once
    [container] = engine.containers.list(
        filters={"label": [f"{LABEL_PROJECT}={model['id']}", f"{LABEL_INSTANCE}={_instance(stack)}"]}
    )
    source = Path(container.attrs["HostConfig"]["Mounts"][0]["Source"])
    folder = source.with_name("bench-peer")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").mkdir()
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, *(int(number) for number in container.attrs["Config"]["User"].split(":")))
    service.stop(model)
    peer = Peer(engine, container, folder)
    starts, wakes = [], []
    try:
        for _ in range(ROUNDS):
            project = service.create()
            starts.append((service.start(project), peer.run()))
            service.stop(project)
            peer.stop()
            wakes.append((service.start(project), peer.start()))
            service.delete(project)
    finally:
        peer.remove()
        shutil.rmtree(folder)
        service.delete(model)
    return [_row("start → first 200", starts), _row("wake → first 200", wakes)]


def _instance(stack: RunningStack) -> str:
    return DataDirectory(stack.data).instance


def _row(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "name": name,
        "ms": round(1000 * median(own for own, _ in pairs)),
        "floor_ms": round(1000 * median(floor for _, floor in pairs)),
        "ratio": round(median(own / floor for own, floor in pairs), 2),
        "target": f"<= {TARGET}",
    }


def main() -> int:
    """Measure on a stack of its own and print a JSON line per row; 0 when the targets are met."""
    data = Path(tempfile.mkdtemp(prefix="bench-"))
    stack = RunningStack(stack_environment(data))
    try:
        stack.wait_ready()
        rows = measure(stack)
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), flush=True)
    finally:
        stack.stop()
        shutil.rmtree(data, ignore_errors=True)
    return int(any(row["ratio"] > TARGET for row in rows))


if __name__ == "__main__":
    sys.exit(main())
