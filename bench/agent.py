"""What chat and agent add to a model: time to the first token, delay of each token, and the cost of a step.

`python -m bench.agent` runs a whole stack of `make up` (local mode) before a model server whose tokens say when they
were sent, and asks that server directly in the same run: figures are differences to it.
"""

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from copy import copy
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from tests.workers.stacks import RunningStack, free_ports, stack_environment

ROUNDS = 30
STEPS = 60
RATE = 50.0
TOKENS = 1500
SETTLE_S = 2.0
USERS_HOLD = 50
"""Streams of one user; a user may have 100 tasks under way."""
PROJECTS_HOLD = 5
"""Streams of one project."""

FIRST_TOKEN_MS = 90.0
STEP_MS = 50.0
DELAY_MS = {50: 60.0, 200: 75.0}

Json = dict[str, Any]


class Owner:
    """A user in a project, over HTTP."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self.http = http
        self.headers = {"Authorization": f"Bearer {token}"}
        self.project_id = 0

    @classmethod
    async def sign_up(cls, http: httpx.AsyncClient, number: int) -> "Owner":
        """A new one, with a project."""
        body = {"email": f"bench{number}@example.com", "password": "correct horse battery"}
        answer = (await http.post("/api/auth/register", json=body)).raise_for_status().json()
        return await cls(http, answer["access_token"]).with_another_project()

    async def with_another_project(self) -> "Owner":
        """The same user, in a new project."""
        there = copy(self)
        project = await self.post("/api/projects", {"name": "bench", "template": "static"}, Prefer="wait=60")
        there.project_id = project["id"]
        return there

    async def post(self, path: str, body: Json, **headers: str) -> Json:
        """The answer's JSON."""
        while True:
            answer = await self.http.post(path, json=body, headers=self.headers | headers)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return dict(answer.raise_for_status().json())
            await asyncio.sleep(float(answer.headers["retry-after"]))

    async def chat(self) -> str:
        """A new chat's id."""
        return str((await self.post("/api/chat", {"project_id": self.project_id}))["id"])


class Events:
    """A project's log, read as it comes by the least that reads it. `on_event` is given type and raw JSON."""

    def __init__(self, api: str, owner: Owner, since: int = 0) -> None:
        self._port = int(api.rsplit(":", 1)[1])
        self._owner = owner
        self._since = since

    async def __aiter__(self) -> AsyncIterator[tuple[float, Json]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**22)
        path = f"/api/projects/{self._owner.project_id}/events?since={self._since}"
        lines = [f"GET {path} HTTP/1.1", "Host: bench", *(f"{k}: {v}" for k, v in self._owner.headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        try:
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    yield time.monotonic(), json.loads(line[6:])
        finally:
            writer.close()


# --- time to the first token ---


async def first_token_directly(model: str) -> float:
    body = {"model": "stamped", "stream": True, "messages": [{"role": "user", "content": '{"tokens": 3}'}]}
    began = time.monotonic()
    async with (
        httpx.AsyncClient(base_url=model, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            if '"content"' in line:
                return 1000 * (time.monotonic() - began)
    raise RuntimeError("no token came")


async def first_token_through_us(api: str, owner: Owner) -> float:
    """From a message to its first token on a stream that is open already."""
    chat = await owner.chat()
    arrived: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    opened = asyncio.Event()

    async def watch() -> None:
        async for at, event in Events(api, owner):
            opened.set()
            if event["type"] == "text.delta" and event["task_id"] == task.get("id"):
                arrived.set_result(at)
                return

    task: Json = {}
    watching = asyncio.create_task(watch())
    await opened.wait()
    await asyncio.sleep(0.1)  # what is in the log already has come
    began = time.monotonic()
    answer = await owner.post(f"/api/chat/{chat}/messages", {"content": '{"tokens": 3}'})
    task |= answer["task"]
    async with asyncio.timeout(20):
        at = await arrived
    await watching
    return 1000 * (at - began)


async def measure_first_token(api: str, model: str, owner: Owner) -> float:
    direct, ours = [], []
    for _ in range(ROUNDS):
        direct.append(await first_token_directly(model))
        ours.append(await first_token_through_us(api, owner))
        await asyncio.sleep(0.1)
    added = median(ours) - median(direct)
    print(f"{'first token, directly / through us, ms p50':<52} {median(direct):>7.1f} {median(ours):>7.1f}")
    return row("first token: added, p50", added, FIRST_TOKEN_MS)


# --- delay of each token ---


async def one_stream(owner: Owner, delays: dict[str, list[tuple[float, float]]]) -> None:
    chat = await owner.chat()
    content = json.dumps({"tokens": TOKENS, "rate": RATE})
    # With an id of its own, so that it may be sent again after a 503.
    answer = await owner.post(f"/api/chat/{chat}/messages", {"content": content, "client_message_id": "1"})
    delays.setdefault(answer["task"]["id"], [])


async def watch_tokens(api: str, owner: Owner, delays: dict[str, list[tuple[float, float]]], expected: int) -> None:
    """Delays of the tokens of all streams of one owner, until each has had its last."""
    missing = expected
    async for at, event in Events(api, owner):
        if event["type"] == "text.delta":
            samples = delays.setdefault(event["task_id"], [])
            samples += [(float(stamp), at) for stamp in event["data"]["text"].split()]
        elif event["type"] == "task.state" and event["data"]["state"] in {"completed", "failed", "cancelled"}:
            missing -= 1
            if missing == 0:
                return


async def measure_delay(api: str, http: httpx.AsyncClient, streams: int, first_user: int) -> float:
    users = [await Owner.sign_up(http, first_user + n) for n in range(-(-streams // USERS_HOLD))]
    places = streams // len(users) // PROJECTS_HOLD
    owners = [
        owner for user in users for owner in [user, *[await user.with_another_project() for _ in range(1, places)]]
    ]
    delays: dict[str, list[tuple[float, float]]] = {}
    watching = [asyncio.create_task(watch_tokens(api, owner, delays, PROJECTS_HOLD)) for owner in owners]
    async with asyncio.TaskGroup() as group:
        for owner in owners:
            for _ in range(PROJECTS_HOLD):
                group.create_task(one_stream(owner, delays))
    async with asyncio.timeout(TOKENS / RATE + 120):
        await asyncio.gather(*watching)
    lost = sum(TOKENS - len(samples) for samples in delays.values())
    # While streams begin and end, the machine does other things than streaming.
    begin = max(samples[0][0] for samples in delays.values()) + SETTLE_S
    end = min(samples[-1][0] for samples in delays.values())
    steady = [1000 * (at - sent) for samples in delays.values() for sent, at in samples if begin <= sent <= end]
    if lost or len(steady) < streams * RATE:
        sys.exit(f"{streams} streams: {lost} tokens lost, {len(steady)} measured while all of them streamed")
    cuts = quantiles(steady, n=100)
    print(f"{f'{streams} streams at {RATE:.0f} tokens/s, ms p50 / p99':<52} {cuts[49]:>7.1f} {cuts[98]:>7.1f}")
    return row(f"{streams} streams: delay of a token, p95", cuts[94], DELAY_MS[streams])


# --- a step of the loop ---


async def measure_step(api: str, model: str, owner: Owner) -> float:
    """From a step's begin to the next one's, without the model's time and the tool's."""
    prompt = json.dumps({"calls": STEPS})
    body = {"project_id": owner.project_id, "prompt": prompt, "max_steps": STEPS + 5, "approval_mode": "auto"}
    task = await owner.post("/api/agent/tasks", body)
    began: list[float] = []
    async for at, event in Events(api, owner):
        if event.get("task_id") == task["id"]:
            if event["type"] == "step.started":
                began.append(at)
            if event["type"] == "task.state" and event["data"]["state"] == "completed":
                break
    done = (await owner.http.get(f"/api/agent/tasks/{task['id']}", headers=owner.headers)).json()
    calls = [call for step in done["steps"] for call in step["tool_calls"]]
    tool = median(_ms(call["ended_at"]) - _ms(call["started_at"]) for call in calls)
    answer = await _model_time(model, prompt)
    step = median(1000 * (after - before) for before, after in itertools.pairwise(began))
    print(f"{'step of the loop / its model / its tool, ms p50':<52} {step:>7.1f} {answer:>7.1f} {tool:>7.1f}")
    return row("step of the loop: overhead, p50", step - answer - tool, STEP_MS)


def _ms(moment: str) -> float:
    return 1000 * datetime.fromisoformat(moment).timestamp()


async def _model_time(model: str, prompt: str) -> float:
    body = {"model": "stamped", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    took = []
    async with httpx.AsyncClient(base_url=model, trust_env=False) as http:
        for _ in range(ROUNDS):
            began = time.monotonic()
            (await http.post("/v1/chat/completions", json=body)).raise_for_status()
            took.append(1000 * (time.monotonic() - began))
    return median(took)


# --- the run ---


def row(name: str, value: float, target: float) -> float:
    """Print it; returns by how much it misses its target, 0 when met."""
    print(f"{name:<52} {value:>7.1f}   ≤ {target:g}  {'met' if value <= target else 'MISSED'}", flush=True)
    return max(0.0, value - target)


async def measure(api: str, model: str) -> bool:
    async with httpx.AsyncClient(base_url=api, timeout=60, trust_env=False) as http:
        owner = await Owner.sign_up(http, 0)
        missed = await measure_first_token(api, model, owner)
        missed += await measure_step(api, model, owner)
        for number, streams in enumerate(DELAY_MS):
            missed += await measure_delay(api, http, streams, 100 * (number + 1))
        return missed == 0


def main() -> int:
    """Run all; 0 when every target is met."""
    folder = Path(tempfile.mkdtemp(prefix="studio-bench-"))
    folder.chmod(0o755)
    (port,) = free_ports(1)
    model = f"http://127.0.0.1:{port}"
    serving = subprocess.Popen([sys.executable, "-m", "bench.stamping_model", str(port)])
    environment = stack_environment(folder / "data") | {
        "DEPLOYMENT_MODE": "local",
        "OPENAI_API_BASE": f"{model}/v1",
        "OPENAI_MODEL": "stamped",
        "LOG_LEVEL": "warning",
    }
    stack = RunningStack(environment)
    try:
        stack.wait_ready()
        return 0 if asyncio.run(measure(stack.api, model)) else 1
    finally:
        stack.stop()
        serving.terminate()
        serving.wait(timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
