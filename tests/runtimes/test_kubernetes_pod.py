"""A pod made from the manifests, seen from beside the driver: what runs in it, as whom, and what a crash leaves."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from activities.ports import DevServerSpec
from activities.runtimes.kubernetes_spec import KubernetesContainerSettings, deployment, selector
from tests.cluster import kubectl
from tests.runtimes.conftest import spec_of
from tests.runtimes.waiting import until
from workflows.contracts.names import ProjectRef, kubernetes_name, project_subpath, user_subpath

pytestmark = pytest.mark.kubernetes

HOSTILE = "a\nb: $(HOME) $$ $(NO) 'é' \"😀\"\u2028{{x}} $"


@dataclass
class Pod:
    """The pod of one Deployment."""

    namespace: str
    ref: ProjectRef

    def shown(self) -> dict[str, Any]:
        """Its container's status; empty while there is none."""
        told = self._ask("get", "pods", "-l", selector("test", self.ref), "-o", "json")
        found = [status for pod in json.loads(told)["items"] for status in pod["status"].get("containerStatuses", [])]
        return dict(found[0]) if found else {}

    def run(self, script: str) -> str:
        """What a command in it prints."""
        return self._ask("exec", self._deployment, "--", "sh", "-c", script)

    def log(self, *words: str) -> str:
        return self._ask("logs", self._deployment, *words)

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Its container's status once the condition holds of it."""

        async def holds() -> bool:
            status = self.shown()
            return bool(status) and condition(status)

        await until(holds, within_s=60)
        return self.shown()

    @property
    def _deployment(self) -> str:
        return f"deployment/{kubernetes_name(self.ref)}"

    def _ask(self, *words: str) -> str:
        return kubectl("-n", self.namespace, *words)


Launch = Callable[[DevServerSpec], Pod]


@pytest.fixture
def ref() -> ProjectRef:
    return ProjectRef(7, int(uuid4().int % 10**9) + 1)


@pytest.fixture
def launch(cluster: dict[str, Any], image: str, ref: ProjectRef) -> Iterator[Launch]:
    """Applies a Deployment, with the folders that a driver would have made."""
    namespace = cluster["kubernetes"].namespace
    settings = KubernetesContainerSettings("test", namespace, image, "localhost", "studio-projects", 1000, 1000)

    def make(spec: DevServerSpec) -> Pod:
        root: Path = cluster["projects_root"]
        for folder in (root / project_subpath(ref), root / user_subpath(ref.user_id) / "cache"):
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, 1000, 1000)
        kubectl("apply", "--server-side", "-f", "-", text=json.dumps(deployment(spec, settings)))
        return Pod(namespace, ref)

    yield make
    kubectl("-n", namespace, "delete", "deployment", kubernetes_name(ref), "--ignore-not-found", "--wait=false")


async def test_a_server_runs_with_nothing_but_its_own(launch: Launch, ref: ProjectRef) -> None:
    pod = launch(spec_of(ref, "exec sleep infinity", environment={"HOSTILE": HOSTILE, "EMPTY": ""}))
    await pod.until(lambda status: "running" in status["state"])
    told = json.loads(pod.run("python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'"))
    assert (told["HOSTILE"], told["EMPTY"], told["HOME"], told["PORT"]) == (HOSTILE, "", "/home/dev", "8000")
    in_cluster = {name for name in told if name.startswith("KUBERNETES_SERVICE_") or name.endswith("_SERVICE_HOST")}
    assert in_cluster <= {name for name in told if name.startswith("KUBERNETES_")}  # the API server's, put in always

    first = dict(re.findall(r"(\w+):\t(.*)", pod.run("cat /proc/1/status")))
    assert (set(first["Uid"].split()), set(first["Gid"].split())) == ({"1000"}, {"1000"})
    assert {first[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert first["NoNewPrivs"] == "1"
    assert pod.run("touch /x /usr/x 2>/dev/null; touch ./a /cache/b /tmp/c ~/d && echo written") == "written\n"
    assert pod.run("grep -c ' /root/termination-message ' /proc/self/mountinfo") == "1\n"
    assert "denied" in pod.run("(: > /root/termination-message) 2>&1 || true")
    assert pod.run("ls /dev/termination-log 2>&1 || true").endswith("No such file or directory\n")
    assert pod.run("ls /var/run/secrets/kubernetes.io 2>&1 || true").endswith("No such file or directory\n")
    assert pod.run("cat /proc/mounts | grep -c ' /home/dev tmpfs\\| /tmp tmpfs'") == "2\n"
    assert pod.run("pwd; grep -o 'open files *[0-9]*' /proc/1/limits | grep -o '[0-9]*'") == "/workspace/app\n1024\n"
    bounds = pod.run("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true")
    assert bounds == f"{256 * 2**20}\n"


async def test_a_crash_leaves_its_code_and_its_last_lines_and_is_not_run_again(launch: Launch, ref: ProjectRef) -> None:
    pod = launch(spec_of(ref, "echo run >> runs; echo last words; exit 7", install="echo in >> installs"))
    status = await pod.until(lambda status: status["restartCount"] > 0 and "running" in status["state"])
    ended = status["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"], status["restartCount"]) == (7, "Error", 1)
    assert pod.log("--previous").endswith("last words\n")
    assert pod.log() == ""
    assert pod.run("cat runs installs") == "run\nin\n"


async def test_memory_that_ran_out_is_told_as_such(launch: Launch, ref: ProjectRef) -> None:
    pod = launch(spec_of(ref, 'python3 -c "bytearray(700 * 2**20)"'))
    status = await pod.until(lambda status: status["restartCount"] > 0)
    ended = status["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


async def test_the_first_process_hands_on_what_the_kubelet_tells_it(launch: Launch, ref: ProjectRef) -> None:
    """By a signal of our own: when the kubelet sends it depends on what else it has to do."""
    pod = launch(spec_of(ref, "trap 'touch told; exit 5' TERM; touch up; while :; do sleep 0.1; done"))

    async def up() -> bool:
        try:
            return pod.run("ls") == "up\n"
        except subprocess.CalledProcessError:  # there is no container yet
            return False

    await until(up, within_s=60)
    pod.run("kill -TERM 1")
    status = await pod.until(lambda status: status["restartCount"] > 0 and "running" in status["state"])
    assert status["lastState"]["terminated"]["exitCode"] == 5
    assert pod.run("ls") == "told\nup\n"
