"""What a hundred projects at once cost on a one-node cluster, against the same objects applied by hand.

`python -m bench.many_projects` needs a cluster (`make cluster`) of 24 GB. Seconds from the command to the last page's
first 200, through the same Ingress controller with the same gate before it: `POST /start` of all of them at once,
against one `kubectl apply` of as many. Then what the service has asked the API server for each, and what it has
computed: the API server's own counts, the processes' own times.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.by_hand import ByHand, apply_by_kubectl
from bench.start_cost import TARGET
from tests.k8s.crowd import Crowd, asked, crowd_of
from tests.namespaces import own_namespace
from tests.workers.stacks import RunningStack, stack_environment
from workflows.contracts.names import ProjectRef

PEOPLE, EACH = 4, 25
MEMORY_MB = 160
READY_S = 180.0
UP_S = 400.0
DOWN_S = 300.0
VERBS = ("GET", "LIST", "APPLY")


async def measure(stack: RunningStack) -> dict[str, Any]:
    """The row."""
    hand = ByHand(stack)
    async with crowd_of(stack, PEOPLE) as crowd:
        await crowd.create(EACH)
        asked_before, computed_before = await asked(), _computed(stack)
        began = time.perf_counter()
        await crowd.start()
        await crowd.until_running(UP_S)
        await crowd.pages()
        took = time.perf_counter() - began
        told, computed = (await asked()).since(asked_before), _computed(stack) - computed_before
        await crowd.delete(DOWN_S)
        peer = await _by_hand(crowd, hand)
    projects = PEOPLE * EACH
    return {
        "name": f"{projects} projects at once → every page",
        "s": round(took, 1),
        "kubectl_s": round(peer, 1),
        "ratio": round(took / peer, 2),
        "target": f"ratio <= {TARGET}",
        "watches": sum(told.watches.values()),
        "calls_each": {verb: round(told.count(verb) / projects, 1) for verb in VERBS},
        "cpu_ms_each": round(1000 * computed / projects),
    }


async def _by_hand(crowd: Crowd, hand: ByHand) -> float:
    """Seconds from `kubectl apply` of other projects to the last page."""
    await crowd.create(EACH)
    refs = [ProjectRef(project.owner.id, project.id) for project in crowd.projects]
    made = [manifest for ref in refs for _, manifest in await hand.manifests(ref)]
    began = time.perf_counter()
    await asyncio.to_thread(apply_by_kubectl, *made)
    await crowd.pages(UP_S)
    took = time.perf_counter() - began
    await crowd.delete(DOWN_S)
    return took


def _computed(stack: RunningStack) -> float:
    """Processor seconds of worker and API, so far."""
    times = [psutil.Process(stack.pid(part)).cpu_times() for part in ("worker", "api")]
    return sum(one.user + one.system for one in times)


def main() -> int:
    """Measure on a stack and a namespace of its own, print a JSON line; 0 when the target is met."""
    data = Path(tempfile.mkdtemp(prefix="bench-")) / "data"
    own = {"DEVSERVER_MEMORY_MB": str(MEMORY_MB), "RECONCILE_INTERVAL_S": "3600"}  # which would stop what isn't its own
    try:
        with own_namespace(data) as cluster:
            stack = RunningStack(stack_environment(data) | cluster | own)
            try:
                stack.wait_ready(READY_S)
                row = asyncio.run(measure(stack))
            finally:
                stack.stop()
    finally:
        shutil.rmtree(data.parent, ignore_errors=True)
    print(json.dumps(row, ensure_ascii=False), flush=True)
    return int(row["ratio"] > TARGET)


if __name__ == "__main__":
    sys.exit(main())
