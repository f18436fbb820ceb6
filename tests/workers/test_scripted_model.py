"""The scripted model as its clients see it: a process of its own, OpenAI's wire format, spoken to with httpx alone."""

import json
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from httpx_sse import EventSource

from tests.workers.stacks import ROOT, free_ports
from workers.scripted_model.conversation import ChatRequest
from workers.scripted_model.counters import Counters
from workers.scripted_model.scripted import answer_scripted

TOOLS = [{"type": "function", "function": {"name": "run_command", "parameters": {"type": "object"}}}]
BOUND_S = 30.0


class Server:
    """`python -m workers.scripted_model`, up."""

    def __init__(self) -> None:
        port = free_ports(1)[0]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.scripted_model", "--port", str(port)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=BOUND_S, trust_env=False)
        self._wait_answering()

    def _wait_answering(self) -> None:
        deadline = time.monotonic() + BOUND_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None
            try:
                if self.client.get("/healthz").json() == {"status": "ok"}:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("it doesn't answer")

    def close(self) -> int:
        self.client.close()
        self.process.terminate()
        return self.process.wait(BOUND_S)

    def ask(self, body: dict[str, Any]) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=body)

    def events(self, body: dict[str, Any]) -> Generator[str, None, None]:
        with self.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200
            for event in EventSource(response).iter_sse():
                yield event.data

    def counts(self, key: str) -> dict[str, int]:
        counts: dict[str, int] = self.client.get("/calls").json()["calls"].get(key, {})
        return {name: count for name, count in counts.items() if count}

    def wait_counts(self, key: str, wanted: dict[str, int]) -> None:
        deadline = time.monotonic() + BOUND_S
        while self.counts(key) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.counts(key) == wanted


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def key() -> str:
    return uuid4().hex


def asking(script: dict[str, Any], *more: dict[str, Any], tools: bool = True) -> dict[str, Any]:
    """A request whose user gives the script."""
    messages = [{"role": "user", "content": f"Do this: <script>{json.dumps(script)}</script>"}, *more]
    return {"model": "scripted", "messages": messages, **({"tools": TOOLS} if tools else {})}


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def answered(number: int) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": str(index)} for index in range(number)]


def test_names_its_models(server: Server) -> None:
    models = server.client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [(model["id"], model["object"]) for model in models["data"]] == [("demo", "model"), ("scripted", "model")]


def test_a_stream_has_openais_shape(server: Server) -> None:
    step = {"text": "Hello there", "chars_per_piece": 6, "pieces_per_s": 0, "usage": {"input": 7, "output": 3}}
    body = asking({"steps": [step]}) | {"stream_options": {"include_usage": True}}
    *lines, done = server.events(body)
    assert done == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert len({(c["id"], c["created"]) for c in chunks}) == 1
    assert {(c["object"], c["model"]) for c in chunks} == {("chat.completion.chunk", "scripted")}
    deltas = [c["choices"][0]["delta"] for c in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[1:] == [{"content": "Hello "}, {"content": "there"}, {}]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None, None, None, "stop"]
    assert {c["usage"] for c in chunks[:-1]} == {None}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def test_a_stream_tells_no_usage_unasked(server: Server) -> None:
    chunks = [json.loads(line) for line in list(server.events(asking({"steps": [{"text": "Hello"}]})))[:-1]]
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_calls_are_streamed_as_head_and_pieces(server: Server) -> None:
    arguments = {"command": "echo " + "x" * 100}
    calls = [{"name": "run_command", "arguments": arguments}, {"name": "other", "arguments": "{not JSON"}]
    chunks = [json.loads(line) for line in list(server.events(asking({"steps": [{"calls": calls}]})))[:-1]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    pieces = [piece for c in chunks for piece in c["choices"][0]["delta"].get("tool_calls", [])]
    heads = [piece for piece in pieces if "id" in piece]
    assert [(head["index"], head["type"], head["function"]["name"]) for head in heads] == [
        (0, "function", "run_command"),
        (1, "function", "other"),
    ]
    assert len({head["id"] for head in heads}) == 2
    told = ["".join(p["function"]["arguments"] for p in pieces if p["index"] == index) for index in (0, 1)]
    assert json.loads(told[0]) == arguments
    assert told[1] == "{not JSON"
    assert len(pieces) > 4


def test_a_whole_answer_has_openais_shape(server: Server) -> None:
    call = {"name": "run_command", "arguments": {"command": "ls"}}
    answer = server.ask(asking({"steps": [{"text": "I look.", "calls": [call]}]})).json()
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "I look.")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "run_command", "arguments": '{"command": "ls"}'}
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 20


def test_answers_follow_the_script(server: Server) -> None:
    script = {"steps": [{"text": "first {{n}}"}, {"text": "again {{n}}", "repeat_steps": 2}, {"text": "last"}]}
    said = [text_of(server.ask(asking(script, *answered(number)))) for number in range(5)]
    assert said == ["first 0", "again 1", "again 2", "last", "done"]
    assert text_of(server.ask(asking(script | {"repeat": True}, *answered(9)))) == "last"


def test_the_newest_script_counts_and_a_plain_message_changes_nothing(server: Server) -> None:
    old = asking({"steps": [{"text": "old"}]}, *answered(3))["messages"]
    steering = {"role": "user", "content": "Be quick."}
    body = asking({"steps": [{"text": "new 0"}, {"text": "new 1"}]}, *answered(1), steering)
    assert text_of(server.ask(body | {"messages": [*old, *body["messages"]]})) == "new 1"


def test_a_summary_in_place_of_messages_repeats_no_step(server: Server) -> None:
    call = {"name": "run_command", "arguments": {"command": "echo {{n}}"}}
    script = {"steps": [{"text": "begin"}, {"calls": [call], "text": "{{n}}", "repeat_steps": 20}, {"text": "end"}]}
    message = server.ask(asking(script, *answered(6))).json()["choices"][0]["message"]
    summary = {"role": "user", "content": "Summary: six steps were done."}
    message["tool_calls"][0]["id"] = "an id of the service's own"
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "ok"}
    assert text_of(server.ask(asking(script, summary, message, result))) == "7"
    assert text_of(server.ask(asking(script, summary, {"role": "assistant", "content": "end"}))) == "done"


def test_a_request_without_tools_is_no_step_of_a_task(server: Server, key: str) -> None:
    script = {"key": key, "steps": [{"calls": [{"name": "run_command"}]}], "aside": "In short: nothing."}
    answer = server.ask(asking(script, tools=False)).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("In short: nothing.", "stop")
    assert server.counts(f"{key}/0") == {}
    server.wait_counts(f"{key}/aside", {"begun": 1, "finished": 1})


def test_a_script_that_is_quoted_in_pieces_is_none(server: Server) -> None:
    quoted = {"role": "user", "content": 'Sum up: <script>{"steps": [ … 90 characters left out … ]}</script>'}
    body = {"model": "scripted", "messages": [quoted]}
    assert text_of(server.ask(body)) == "A summary of what was said."
    assert server.ask(body | {"tools": TOOLS}).status_code == 400
    assert text_of(server.ask(asking({"steps": [{"text": "a"}, {"text": "b"}]}, quoted, *answered(1)))) == "b"


def test_tells_what_it_was_asked(server: Server) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "four"}, {"type": "image_url"}]}
    told = json.loads(text_of(server.ask(asking({"steps": [{"say_prompt": True}]}, parts))))
    assert told["tools"] == ["run_command"]
    assert told["messages"][1] == {"role": "user", "chars": 4, "calls": 0}


def test_says_numbered_tokens(server: Server) -> None:
    answer = server.ask(asking({"steps": [{"tokens": 300, "rate": 0}]})).json()
    assert answer["choices"][0]["message"]["content"].split() == [f"t{index}" for index in range(300)]
    assert answer["usage"]["completion_tokens"] == 300


def test_without_a_script_it_is_an_echo(server: Server) -> None:
    asked = {"model": "scripted-2", "messages": [{"role": "user", "content": "Good morning"}]}
    assert text_of(server.ask(asked)) == "You said: Good morning"


def test_refuses_as_often_as_the_script_says(server: Server, key: str) -> None:
    fail = {"status": 429, "headers": {"Retry-After": "3"}, "times": 2}
    body = asking({"key": key, "steps": [{"text": "at last", "fail": fail}]})
    refused = [server.ask(body) for _ in range(2)]
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in refused] == [(429, "3")] * 2
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert text_of(server.ask(body)) == "at last"
    server.wait_counts(f"{key}/0", {"begun": 3, "refused": 2, "finished": 1})


def test_an_error_has_the_scripts_own_body(server: Server) -> None:
    error = {"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}
    answer = server.ask(asking({"steps": [{"fail": {"status": 402, "body": error}}], "key": uuid4().hex}))
    assert (answer.status_code, answer.json()) == (402, error)


def test_drops_the_connection_midway(server: Server, key: str) -> None:
    body = asking({"key": key, "steps": [{"tokens": 9, "rate": 0, "fail": {"drop_after": 4}}]})
    events: list[str] = []
    with pytest.raises(httpx.RemoteProtocolError):
        events.extend(server.events(body))
    assert len(events) == 1 + 4
    server.wait_counts(f"{key}/0", {"begun": 1, "failed": 1})
    assert list(server.events(body))[-1] == "[DONE]"


def test_drops_the_connection_of_a_whole_answer(server: Server, key: str) -> None:
    body = asking({"key": key, "steps": [{"tokens": 9, "rate": 0, "fail": {"drop_after": 4}}]})
    with pytest.raises(httpx.RemoteProtocolError):
        server.ask(body)
    assert server.ask(body).status_code == 200


def test_a_stream_may_end_with_an_error(server: Server, key: str) -> None:
    fail = {"error_after": 2, "body": {"error": {"message": "Overloaded.", "type": "server_error"}}}
    events = list(server.events(asking({"key": key, "steps": [{"tokens": 9, "rate": 0, "fail": fail}]})))
    assert len(events) == 1 + 2 + 1
    assert json.loads(events[-1]) == fail["body"]


def test_a_stream_may_lack_its_end_mark(server: Server, key: str) -> None:
    script = {"key": key, "steps": [{"text": "Hello", "fail": {"no_done": True}}]}
    events = list(server.events(asking(script)))
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_hangs_until_the_client_goes(server: Server, key: str, stream: bool) -> None:
    body = asking({"key": key, "steps": [{"tokens": 9, "rate": 0, "fail": {"hang_after": 3}}]})
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/v1/chat/completions", json=body | {"stream": stream}, timeout=0.5)
    server.wait_counts(f"{key}/0", {"begun": 1, "cut": 1})


def test_a_client_that_goes_ends_its_answer(server: Server, key: str) -> None:
    events = server.events(asking({"key": key, "steps": [{"tokens": 100_000}]}))
    for _ in range(3):
        next(events)
    assert server.counts(f"{key}/0") == {"begun": 1}
    events.close()
    server.wait_counts(f"{key}/0", {"begun": 1, "cut": 1})


def test_longer_requests_than_the_limit_are_refused_as_openai_does(server: Server, key: str) -> None:
    script = {"key": key, "steps": [{"text": "short enough"}], "context_limit": 500}
    long = {"role": "user", "content": "x" * 2000}
    answer = server.ask(asking(script, long))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
    assert error["message"].startswith("This model's maximum context length is 500 tokens.")
    assert text_of(server.ask(asking(script))) == "short enough"


@pytest.mark.parametrize(
    ("script", "where"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [{"txt": "typo"}]}, "steps.0.txt"),
        ({"steps": [{"fail": {"status": 500, "drop_after": 1}}]}, "steps.0.fail"),
    ],
)
def test_a_wrong_script_is_told(server: Server, script: dict[str, Any], where: str) -> None:
    answer = server.ask(asking(script))
    assert answer.status_code == 400
    assert f"wrong at {where}:" in answer.json()["error"]["message"]


def test_wrong_requests_are_refused(server: Server) -> None:
    unknown = server.ask({"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    bad = server.ask({"model": "demo", "messages": "Hello"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "messages")
    assert server.ask({"model": "demo", "messages": []}).status_code == 400
    huge = server.client.post("/v1/chat/completions", content=b" " * (32 * 1024 * 1024 + 1))
    assert huge.status_code == 413


def test_the_demo_streams_as_an_agents_model(server: Server) -> None:
    tools = [{"type": "function", "function": {"name": "read_file"}}]
    body = {"model": "demo", "messages": [{"role": "user", "content": "Make it blue"}], "tools": tools}
    *chunks, done = server.events(body)
    assert done == "[DONE]"
    assert "scripted demo model" in "".join(json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks)
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "tool_calls"


def test_ends_in_order_with_a_stream_open() -> None:
    running = Server()
    events = running.events(asking({"steps": [{"tokens": 100_000}]}))
    next(events)
    running.process.terminate()
    # Its grace is a second; a process that waited for the stream would need half an hour.
    assert running.process.wait(BOUND_S) == -15
    with pytest.raises(httpx.RemoteProtocolError):
        list(events)
    running.client.close()


def test_counters_have_an_end() -> None:
    counters = Counters()
    for number in range(10_050):
        counters.begin(str(number))
    assert len(counters.all()) == 10_000
    assert "10049" in counters.all()


def test_the_same_script_under_no_key_is_one_conversation() -> None:
    counters = Counters()
    asked = ChatRequest.model_validate(asking({"steps": [{"text": "Hello"}]}))
    keys = {answer_scripted(asked, counters).key for _ in range(2)}
    assert [counters.all()[key]["begun"] for key in keys] == [2]


def test_starts_without_the_rest_of_the_service() -> None:
    """`make up` starts it beside everything else: what it imports is its cost."""
    code = "import sys, workers.scripted_model.app; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"temporalio", "sqlalchemy", "fastapi", "api", "activities"} & set(result.stdout.split())


def test_template_has_what_the_demo_looks_for() -> None:
    page = Path(ROOT / "templates/vite-react/files/src/App.jsx").read_text()
    assert page.count("<h1>") == 1
    assert "build" in json.loads((ROOT / "templates/vite-react/files/package.json").read_text())["scripts"]
