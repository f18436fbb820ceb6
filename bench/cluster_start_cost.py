"""Seconds from a command to the first 200 of the page, in a cluster: the API, against the same objects applied by hand.

`python -m bench.cluster_start_cost` needs a cluster (`make cluster`). Three ways take turns, each with a project of its
own and its files ready, all seen through the same Ingress controller with the same gate before it:

    service   `POST /start`
    kubectl   `kubectl apply` of the Deployment, Service and Ingress that the service's own builders make
    calls     the same three by server-side apply, at once, over the driver's own open connection: the least there is

Start: nothing of the project is in the cluster yet. Wake: its Deployment is there and wants no pod. Ratios are of the
medians. The target is held against `kubectl`; `calls` shows what of that is kubectl's own.
"""

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.by_hand import ByHand, Manifests, apply_by_kubectl
from bench.start_cost import TARGET, Service
from tests.cluster import kubectl
from tests.namespaces import own_namespace
from tests.workers.stacks import RunningStack, stack_environment
from workflows.contracts.names import ProjectRef, kubernetes_name

ROUNDS = 10
READY_S = 180.0
REST_S = 3.0
"""From a stop to the next start: the node ends a server in less, and the service's own stop waits for that."""
WAYS = ("service", "kubectl", "calls")
TICK_S = 1.0
"""An old kubelet looks at its containers once in this time: a start comes at any moment of it."""
Project = dict[str, Any]


class Hand:
    """Starts and stops projects without the service."""

    def __init__(self, stack: RunningStack, service: Service, runner: asyncio.Runner) -> None:
        self._service = service
        self._runner = runner
        self._made = ByHand(stack)
        self._cluster = self._made.cluster()

    def by_kubectl(self, project: Project) -> float:
        """Seconds from `kubectl apply` to the page."""
        manifests = [manifest for _, manifest in self._manifests(project)]
        began = time.perf_counter()
        apply_by_kubectl(*manifests)
        return self._until_page(project, began)

    def by_calls(self, project: Project) -> float:
        """Seconds from the three calls to the page."""
        manifests = self._manifests(project)
        began = time.perf_counter()
        self._runner.run(self._apply(manifests))
        return self._until_page(project, began)

    def stop(self, project: Project) -> None:
        """Have its Deployment want no pod."""
        kubectl("-n", self._made.namespace, "scale", "deployment", kubernetes_name(self._ref(project)), "--replicas=0")

    def check(self, project: Project) -> None:
        """Raise unless the service applies what is applied by hand."""
        self._runner.run(self._made.check(self._ref(project)))

    def close(self) -> None:
        self._runner.run(self._cluster.close())

    def _manifests(self, project: Project) -> Manifests:
        return self._runner.run(self._made.manifests(self._ref(project)))

    async def _apply(self, manifests: Manifests) -> None:
        await asyncio.gather(*(self._cluster.apply(kind, manifest) for kind, manifest in manifests))

    def _until_page(self, project: Project, began: float) -> float:
        self._service.until_page(project)
        return time.perf_counter() - began

    def _ref(self, project: Project) -> ProjectRef:
        return ProjectRef(self._service.user_id, project["id"])


def measure(stack: RunningStack, runner: asyncio.Runner) -> list[dict[str, Any]]:
    """A row for the start and one for the wake."""
    own = Service(stack)
    hand = Hand(stack, own, runner)
    start: dict[str, Callable[[Project], float]] = {
        "service": own.start, "kubectl": hand.by_kubectl, "calls": hand.by_calls
    }  # fmt: skip
    stop = {"service": own.stop, "kubectl": hand.stop, "calls": hand.stop}
    starts: dict[str, list[float]] = {way: [] for way in WAYS}
    wakes: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for turn in range(-1, ROUNDS):  # the first one warms up, and doesn't count
            projects = {way: own.create(template="static") for way in WAYS}
            for times in (starts, wakes):
                for step in range(len(WAYS)):
                    way = WAYS[(turn + step) % len(WAYS)]
                    time.sleep(random.uniform(0, TICK_S))
                    took = start[way](projects[way])
                    if turn >= 0:
                        times[way].append(took)
                    rests_until = time.monotonic() + REST_S
                    stop[way](projects[way])
                    time.sleep(max(0.0, rests_until - time.monotonic()))
            hand.check(projects["service"])
            for project in projects.values():
                own.delete(project)
    finally:
        hand.close()
    return [_row("start → first 200", starts), _row("wake → first 200", wakes)]


def _row(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    own, by_kubectl, by_calls = (median(times[way]) for way in WAYS)
    return {
        "name": name,
        "ms": round(1000 * own),
        "kubectl_ms": round(1000 * by_kubectl),
        "calls_ms": round(1000 * by_calls),
        "ratio": round(own / by_kubectl, 2),
        "ratio_to_calls": round(own / by_calls, 2),
        "target": f"ratio <= {TARGET}",
    }


def main() -> int:
    """Measure on a stack and a namespace of its own, print a JSON line per row; 0 when the targets are met."""
    data = Path(tempfile.mkdtemp(prefix="bench-")) / "data"
    try:
        with own_namespace(data) as cluster, asyncio.Runner() as runner:
            stack = RunningStack(stack_environment(data) | cluster)
            try:
                stack.wait_ready(READY_S)
                rows = measure(stack, runner)
            finally:
                stack.stop()
    finally:
        shutil.rmtree(data.parent, ignore_errors=True)
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return int(any(row["ratio"] > TARGET for row in rows))


if __name__ == "__main__":
    sys.exit(main())
