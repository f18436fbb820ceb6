"""The agent behind a real LiteLLM proxy: each user's own key, what becomes of every error, money, and long tasks."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import BrowserContext

from tests.e2e.conftest import studio_on
from tests.e2e.proxied import KEY, Operator, Proxy, proxied_environment, where_keys_might_show
from tests.e2e.studio import Person, Project, Studio, until
from tests.e2e.tasks import (
    Json,
    Task,
    call,
    give,
    histories,
    results,
    script,
    together,
    try_to_give,
    watch_the_demo_change_the_page,
)

pytestmark = [pytest.mark.docker, pytest.mark.litellm, pytest.mark.slow]

CALL_COST = 0.003
PAID = {"pieces_per_s": 0, "usage": {"input": 100, "output": 20}}
"""A step that costs that much, at the prices of tests/e2e/proxied.py."""
HISTORY_LIMIT = 2 * 1024 * 1024


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """In place of the shared one: a stack with a proxy, on the Docker engine."""
    environment = proxied_environment(tmp_path_factory.mktemp("e2e-proxied") / "data")
    with studio_on(environment, "docker", tmp_path_factory.mktemp("shots-proxied")) as studio:
        yield studio


@pytest.fixture(scope="module")
def proxy(studio: Studio) -> Iterator[Proxy]:
    with closing(Proxy(studio)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def operator(studio: Studio) -> Operator:
    return Operator(studio)


@pytest.fixture(scope="module")
def desk(studio: Studio) -> Project:
    """A project of Ann's for tasks that need little more than the model."""
    return studio.person("ann").start("static", keep=True)


# --- the key ----------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_follows_the_agent_under_its_owners_key_alone(
    studio: Studio, ann: Person, proxy: Proxy, tabs: BrowserContext
) -> None:
    project = ann.start("vite-react")
    proxy.key(ann)
    before = proxy.spends()
    task = watch_the_demo_change_the_page(project, tabs, studio)
    texts = where_keys_might_show(project)  # at once: nobody looks at it any more, so its server sleeps soon
    cost = task.view()["usage"]["cost_usd"]
    assert cost > 0
    own = proxy.alias(ann)
    until(lambda: near(proxy.spends()[own] - before.get(own, 0), cost), "the spend at the proxy", timeout_s=30)
    assert {name: usd for name, usd in proxy.spends().items() if name != own} == {
        name: usd for name, usd in before.items() if name != own
    }
    texts |= {
        "the workflow's history": "".join(readable(history) for _, history in histories(task)),
        "the task's events": json.dumps(task.events()),
        "the task": json.dumps(task.view()),
    }
    assert task.id in texts["the workflow's history"]
    assert {name: KEY.findall(text) for name, text in texts.items() if KEY.search(text)} == {}


def near(one: float, other: float) -> bool:
    return abs(one - other) < 1e-6


def readable(history: str) -> str:
    """With its payloads as they were before they were packed."""
    packed = re.findall(r'"data": "([A-Za-z0-9+/=]+)"', history)
    return history + "".join(base64.b64decode(data).decode(errors="replace") for data in packed)


# --- errors -----------------------------------------------------------------------------------------------------


TEXT = "one two three four five six seven eight"


@pytest.mark.parametrize(
    "fail",
    [{"status": 429}, {"status": 500}, {"status": 503}, {"drop_after": 5}, {"error_after": 5}],
    ids=["429", "500", "503", "cut", "broken"],
)
def test_what_may_pass_is_tried_again_and_told_once(desk: Project, proxy: Proxy, fail: Json) -> None:
    key = uuid4().hex
    task = give(desk, script({"text": TEXT, "pieces_per_s": 100, "fail": {**fail, "times": 2}}, key=key))
    ended = task.completed(timeout_s=120)  # a stream that the proxy leaves hanging is given up after a minute
    assert [step["text"] for step in ended["steps"]] == [TEXT]
    told = task.events()
    begun = [event["type"] for event in told if event["type"] in {"step.started", "step.reset"}]
    assert begun == ["step.started", "step.reset", "step.reset"]
    last = max(number for number, event in enumerate(told) if event["type"] == "step.reset")
    assert "".join(event["data"]["text"] for event in told[last:] if event["type"] == "text.delta") == TEXT
    assert proxy.asked(key) == {"0": 3}


TELLING = "No. See http://127.0.0.1:4000/private, key sk-1234567890abcdef.\nTraceback (most recent call last):"
QUOTA = {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota", "type": "quota"}}


@pytest.mark.parametrize(
    ("fail", "reason", "says"),
    [
        ({"status": 400, "body": {"error": {"message": TELLING, "type": "bad"}}}, "model_refused", "refuses"),
        ({"status": 401}, "model_key_refused", "operator"),
        ({"status": 404}, "unknown_model", "no model scripted"),
        ({"status": 429, "body": QUOTA}, "model_quota_exhausted", "operator"),
    ],
    ids=["400", "401", "404", "quota"],
)
def test_what_wont_pass_ends_the_task_with_its_reason(
    desk: Project, proxy: Proxy, fail: Json, reason: str, says: str
) -> None:
    key = uuid4().hex
    task = give(desk, script({"text": TEXT, "fail": {**fail, "times": 9}}, key=key))
    check_refused(task.until("failed"), reason, says)
    assert proxy.asked(key) == {"0": 1}


def check_refused(task: Json, reason: str, says: str) -> None:
    """A word for programs, and a sentence for its owner that gives nothing away."""
    assert task["state_reason"] == reason
    detail = task["state_detail"]
    assert says in detail
    assert [
        word
        for word in ("sk-", "127.0.0.1", "http", "Traceback", "litellm", "script")
        if word in detail.replace("model scripted", "")
    ] == []


def test_a_model_that_nobody_has_is_refused_at_once(desk: Project) -> None:
    answer = try_to_give(desk, "Hello", model="gpt-unheard-of")
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_model")


def test_a_revoked_key_stops_a_task_at_its_next_call(studio: Studio, proxy: Proxy, operator: Operator) -> None:
    """And a new one lets it be begun again."""
    carl = studio.person("carl")
    project, key = carl.start("static"), uuid4().hex
    waiting = call("run_command", command="while [ ! -e go ]; do sleep 0.1; done")
    task = give(project, script(waiting, {"text": "Never said under the old key."}, key=key))
    until(lambda: task.view()["steps"], "the first step")
    proxy.call("POST", "/key/delete", json={"key_aliases": [proxy.alias(carl)]})
    project.put("go", "")
    check_refused(task.until("failed"), "model_key_refused", "key")
    assert [event["type"] for event in task.events()].count("step.reset") == 0
    assert proxy.asked(key) == {"0": 1}

    operator.replace_key(carl)
    again = Task(project, task.call("POST", "/retry").json())
    assert len(again.completed()["steps"]) == 2
    assert proxy.asked(key) == {"0": 2, "1": 1}


# --- money ------------------------------------------------------------------------------------------------------


def test_a_budget_that_is_spent_at_the_proxy_pauses(studio: Studio, proxy: Proxy, operator: Operator) -> None:
    dora = studio.person("dora")
    project = dora.start("static")
    give(project, script({**PAID, "text": "Spent."})).completed()
    proxy.call("POST", "/key/update", json={"key": proxy.key(dora)["token"], "max_budget": CALL_COST / 2})
    task = give(project, script({**PAID, "text": "Paid for."}))
    paused = task.until("awaiting_approval")
    assert (paused["state_reason"], paused["steps"]) == ("user_budget", [])
    assert "raises" in paused["state_detail"]
    operator.set_budget(dora, 5)
    assert task.completed()["steps"][0]["text"] == "Paid for."


def test_twenty_tasks_share_a_months_budget(studio: Studio, proxy: Proxy, operator: Operator) -> None:
    eve, budget = studio.person("eve"), 0.01
    project = eve.start("static")
    proxy.key(eve)
    operator.set_budget(eve, budget)
    prompt = script({**call("list_files"), **PAID, "repeat_steps": 3}, {**PAID, "text": "Done."})
    with together(20) as hands:
        tasks = list(hands.map(lambda _: give(project, prompt), range(20)))
    states = [task.until("awaiting_approval", "completed") for task in tasks]
    assert {state["state_reason"] for state in states if state["state"] != "completed"} == {"user_budget"}
    spent = usage(eve)["month_cost_usd"]
    assert budget <= spent < budget + CALL_COST
    until(lambda: near(proxy.key(eve)["spend"], spent), "the same spend at the proxy", timeout_s=30)

    operator.set_budget(eve, 10)
    ended = [task.completed(120) for task in tasks]
    assert all(len(task["steps"]) == 4 for task in ended)
    total = sum(task["usage"]["cost_usd"] for task in ended)
    assert near(total, 20 * 4 * CALL_COST)
    month = usage(eve)
    assert near(month["month_cost_usd"], total)
    assert near(sum(item["cost_usd"] for item in month["items"]), total)
    for kind in ("input_tokens", "output_tokens"):
        assert sum(item[kind] for item in month["items"]) == sum(task["usage"][kind] for task in ended)
    until(lambda: near(proxy.key(eve)["spend"], total), "all of it at the proxy", timeout_s=30)


def usage(person: Person) -> dict[str, Any]:
    answer = person.http.get("/api/usage", params={"limit": 200})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_tasks_own_budget_pauses_it_until_it_is_raised(desk: Project) -> None:
    prompt = script({**call("list_files"), **PAID, "repeat_steps": 6}, {**PAID, "text": "Done."})
    task = give(desk, prompt, budget_usd="0.01")
    paused = task.until("awaiting_approval")
    assert paused["state_reason"] == "budget"
    assert "budget_usd" in paused["state_detail"]
    assert 0.01 <= paused["usage"]["cost_usd"] < 0.01 + CALL_COST
    task.call("PATCH", json={"budget_usd": "1"})
    ended = task.completed()
    assert len(ended["steps"]) == 7
    assert near(ended["usage"]["cost_usd"], 7 * CALL_COST)


# --- long tasks -------------------------------------------------------------------------------------------------


def test_a_transcript_longer_than_the_model_takes_goes_on_in_summaries(desk: Project, proxy: Proxy) -> None:
    """150 steps, over 200,000 tokens, and a model that takes 40,000."""
    count, key = 150, uuid4().hex
    line = "a line of some length in a file that has to be read to its very end"
    desk.start()
    made = desk.run(f"mkdir -p parts; for n in $(seq 0 {count - 1}); do yes '{line}' | head -n 80 > parts/$n.txt; done")
    assert made["exit_code"] == 0, made
    reading = {**call("read_file", path="parts/{{n}}.txt"), "text": "Part {{n}}.", "repeat_steps": count}
    task = give(desk, script(reading, {"text": "All read."}, key=key, context_limit=40_000), max_steps=count + 10)
    ended = task.completed(170)
    assert [step["n"] for step in ended["steps"]] == list(range(1, count + 2))
    assert ended["steps"][-1]["text"] == "All read."
    assert all(line in result for result in results(ended))
    tokens = sum(len(step["text"]) for step in ended["steps"]) + sum(map(len, results(ended)))
    assert tokens / 4 > 200_000
    asked = proxy.asked(key)
    assert {number: asked.get(str(number)) for number in range(count + 1)} == dict.fromkeys(range(count + 1), 1)
    assert asked["too-long"] >= 5
    sizes = [size for size, _ in histories(task)]
    assert max(sizes) < HISTORY_LIMIT


# --- waiting ----------------------------------------------------------------------------------------------------


def test_the_dev_server_sleeps_while_its_task_waits_and_wakes_on_the_answer(ann: Person) -> None:
    project = ann.start("static")
    writing = call("run_command", command="echo allowed > answer.txt")
    task = give(project, script(writing, {"text": "Written."}), approval_mode="ask")
    question = task.until("awaiting_approval")["approvals"][0]
    server = until(lambda: asleep(project), "the dev server, asleep", timeout_s=60)
    assert (server["reason"], server["leases"]) == ("idle", [])
    assert task.view()["state"] == "awaiting_approval"
    task.call("POST", f"/approvals/{question['id']}", json={"decision": "allow"})
    assert task.completed()["steps"][0]["tool_calls"][0]["exit_code"] == 0
    assert project.call("GET", "/files/answer.txt").text == "allowed\n"
    assert project.read()["dev_server"]["state"] == "running"


def asleep(project: Project) -> Json | None:
    server = project.read()["dev_server"]
    return dict(server) if server["state"] == "stopped" else None
