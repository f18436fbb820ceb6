import asyncio
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from activities.errors import (
    ContextOverflowError,
    ModelBudgetError,
    ModelFault,
    ModelKeyRefusedError,
    ModelMissingError,
    ModelQuotaError,
    ModelRefusedError,
    ModelThrottledError,
    ModelUnavailableError,
)
from activities.language_models.open import ModelSettings, open_language_model
from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.language_models.wire import Patience
from activities.ports import ModelInfo, ModelMessage, ModelRequest, ModelUsage, RequestedCall, ToolSchema
from tests.api.stand import free_port
from tests.language_models.servers import (
    HEAD,
    STOP,
    Reply,
    WireServer,
    answering,
    event,
    events,
    listen,
    request,
    script,
    serving,
)
from workers.scripted_model.app import create_app

HASTE = Patience(connect_s=2, first_event_s=1, between_events_s=1, short_answer_s=1)
TOOL = ToolSchema("read_file", "Reads", {"type": "object", "properties": {"path": {"type": "string"}}})


@pytest.fixture
async def scripted() -> AsyncIterator[str]:
    async with serving(create_app()) as address:
        yield address


@pytest.fixture
async def model(scripted: str) -> AsyncIterator[OpenAICompatibleModel]:
    opened = OpenAICompatibleModel(ModelServer(f"{scripted}/v1", "sk-own"), patience=Patience(between_events_s=1))
    yield opened
    await opened.close()


async def ask(reply: Reply, asked: ModelRequest | None = None, **server: Any) -> tuple[str, Any]:
    """The answer of a server that replies so."""
    async with WireServer(reply).up() as address:
        opened = OpenAICompatibleModel(ModelServer(address, "sk-own", **server), patience=HASTE)
        try:
            return await listen(opened, asked or request())
        finally:
            await opened.close()


async def fault_of(reply: Reply, asked: ModelRequest | None = None) -> ModelFault:
    with pytest.raises(ModelFault) as caught:
        await ask(reply, asked)
    return caught.value


async def test_text_comes_in_pieces_and_ends_with_its_usage(model: OpenAICompatibleModel) -> None:
    asked = request(script({"text": "Héllo wörld — 你好", "chars_per_piece": 2, "usage": {"input": 11, "output": 7}}))
    texts: list[str] = []
    end = await model.answer(asked, texts.append)
    assert len(texts) > 3
    assert "".join(texts) == "Héllo wörld — 你好"
    assert (end.finish_reason, end.tool_calls, end.usage) == ("stop", (), ModelUsage(11, 7))


async def test_tool_calls_are_joined_by_index(model: OpenAICompatibleModel) -> None:
    calls = [{"name": "read_file", "arguments": {"path": "a" * 50}}, {"name": "read_file", "arguments": "{not json"}]
    text, end = await listen(model, request(script({"text": "I look.", "calls": calls}), tools=(TOOL,)))
    assert (text, end.finish_reason) == ("I look.", "tool_calls")
    assert [call.name for call in end.tool_calls] == ["read_file", "read_file"]
    assert json.loads(end.tool_calls[0].arguments) == {"path": "a" * 50}
    assert end.tool_calls[1].arguments == "{not json"
    assert end.tool_calls[0].id != end.tool_calls[1].id


def pieces(*calls: dict[str, Any]) -> Reply:
    chunks = [{"choices": [{"delta": {"tool_calls": [call]}}]} for call in calls]
    return events(*chunks, STOP, "[DONE]")


@pytest.mark.parametrize(
    "reply",
    [
        pieces(
            {"id": "1", "function": {"name": "a", "arguments": {"x": 1}}},
            {"id": "2", "function": {"name": "b", "arguments": "{}"}},
        ),
        pieces(
            {"index": 0, "id": "1", "function": {"name": "a", "arguments": '{"x": 1}'}},
            {"index": 0, "id": "2", "function": {"name": "b", "arguments": "{}"}},
        ),
        pieces(
            {"id": "1", "function": {"name": "a", "arguments": '{"x"'}},
            {"function": {"arguments": ": 1}"}},
            {"index": 1, "id": "2", "function": {"name": "b"}},
            {"index": 1, "function": {"arguments": "{}"}},
        ),
    ],
    ids=["whole, without index", "all with index 0", "without index, in pieces"],
)
async def test_servers_that_number_calls_wrongly_are_understood(reply: Reply) -> None:
    _, end = await ask(reply)
    assert end.tool_calls == (RequestedCall("1", "a", '{"x": 1}'), RequestedCall("2", "b", "{}"))


async def test_the_request_is_openais_and_gives_back_no_broken_arguments() -> None:
    server = WireServer(events(STOP, "[DONE]"))
    said = ModelMessage(
        "assistant", "", tool_calls=(RequestedCall("c1", "read_file", "{not"), RequestedCall("c2", "x", '{"a": 1}'))
    )
    asked = ModelRequest(
        "m", (ModelMessage("system", "s"), said, ModelMessage("tool", "bad", tool_call_id="c1")), (TOOL,), 321
    )
    async with server.up() as address:
        opened = OpenAICompatibleModel(ModelServer(address))
        await listen(opened, asked)
        await opened.close()
    (body,) = server.asked
    assert (body["model"], body["stream"], body["stream_options"]) == ("m", True, {"include_usage": True})
    assert body["max_tokens"] == 321
    assert body["tools"] == [
        {"type": "function", "function": {"name": "read_file", "description": "Reads", "parameters": TOOL.parameters}}
    ]
    assert body["messages"][1]["content"] is None
    sent = [call["function"]["arguments"] for call in body["messages"][1]["tool_calls"]]
    assert sent == ["{}", '{"a": 1}']
    assert body["messages"][2] == {"role": "tool", "content": "bad", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("told", "prices", "cost"),
    [
        ({"prompt_tokens": 1000, "completion_tokens": 10}, ("0.000001", "0.00001"), "0.0011"),
        ({"prompt_tokens": 1000, "completion_tokens": 10, "cost": 0.25}, ("0.000001", "0.00001"), "0.25"),
        ({"prompt_tokens": 1000, "completion_tokens": 10, "cost": 1.5e-7}, None, "0.00000015"),
        ({"prompt_tokens": 1000, "completion_tokens": 10}, None, None),
        ({"prompt_tokens": 1000, "completion_tokens": 10, "cost": float("nan")}, None, None),
    ],
)
async def test_cost_is_the_servers_word_else_by_price(
    told: dict[str, Any], prices: tuple[str, str] | None, cost: str | None
) -> None:
    given = None if prices is None else (Decimal(prices[0]), Decimal(prices[1]))
    _, end = await ask(events(STOP, {"choices": [{"delta": {}}], "usage": told}, "[DONE]"), prices=given)
    assert end.usage == ModelUsage(1000, 10, None if cost is None else Decimal(cost))


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"message": "Unsupported parameter", "type": "invalid_request_error"}, ModelRefusedError),
        (400, {"message": "too long", "code": "context_length_exceeded"}, ContextOverflowError),
        (400, {"message": "litellm.ContextWindowExceededError: OpenAIException - x"}, ContextOverflowError),
        (400, {"message": "/chat/completions: Invalid model name passed in model=x."}, ModelMissingError),
        (400, {"message": "Budget has been exceeded! Key=1", "type": "budget_exceeded"}, ModelBudgetError),
        (422, {"message": "Budget has been exceeded!", "type": "budget_exceeded"}, ModelBudgetError),
        (429, {"message": "Budget has been exceeded!", "type": "budget_exceeded"}, ModelBudgetError),
        (401, {"message": "Authentication Error", "type": "token_not_found_in_db"}, ModelKeyRefusedError),
        (403, {"message": "key not allowed to access model", "type": "key_model_access_denied"}, ModelKeyRefusedError),
        (402, {"message": "Insufficient credits"}, ModelQuotaError),
        (404, {"message": "no such model", "code": "model_not_found"}, ModelMissingError),
        (408, {"message": "timeout"}, ModelUnavailableError),
        (422, {"message": "unprocessable"}, ModelRefusedError),
        (429, {"message": "slow down", "type": "throttling_error"}, ModelThrottledError),
        (429, {"message": "You exceeded your current quota", "type": "throttling_error"}, ModelQuotaError),
        (429, {"message": "x", "code": "insufficient_quota"}, ModelQuotaError),
        (500, {"message": "maximum context length of the cache"}, ModelUnavailableError),
        (503, "<html>gone</html>", ModelUnavailableError),
        (302, {"message": "elsewhere"}, ModelRefusedError),
    ],
)
async def test_errors_are_classed_by_status_type_and_message(status: int, error: Any, kind: type[ModelFault]) -> None:
    fault = await fault_of(answering(status, {"error": error} if isinstance(error, dict) else error))
    assert type(fault) is kind
    assert fault.retryable is (kind in {ModelUnavailableError, ModelThrottledError})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "boom", "code": "500"}, ModelUnavailableError),
        ({"message": "litellm.ContextWindowExceededError: x", "code": None}, ContextOverflowError),
        ({"message": "slow down", "type": "throttling_error", "code": "429"}, ModelThrottledError),
        ("boom", ModelUnavailableError),
    ],
)
async def test_an_error_in_mid_stream_is_classed_by_its_content(error: Any, kind: type[ModelFault]) -> None:
    assert type(await fault_of(events({"choices": [{"delta": {"content": "So "}}]}, {"error": error}))) is kind


@pytest.mark.parametrize(
    ("value", "at_least", "at_most"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("86400", 60, 60),
        ("-3", 0, 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 60, 60),
        ("Fri, 01 Jan 2010 00:00:00 GMT", 0, 0),
    ],
)
async def test_retry_after_is_kept_within_a_minute(value: str, at_least: float, at_most: float) -> None:
    fault = await fault_of(answering(429, {"error": {"message": "x"}}, f"Retry-After: {value}\r\n"))
    assert fault.retry_after is not None
    assert at_least <= fault.retry_after <= at_most


@pytest.mark.parametrize("value", ["soon", "nan", "Thu, 99 Foo 2020"])
async def test_a_senseless_retry_after_is_none(value: str) -> None:
    fault = await fault_of(answering(503, {"error": {"message": "x"}}, f"Retry-After: {value}\r\n"))
    assert (type(fault), fault.retry_after) == (ModelUnavailableError, None)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Unknown parameter: 'frob'", True),
        ("Bad key sk-abcdef0123456789 used", True),
        ("Nobody at http://10.1.2.3:4000/v1 or 10.1.2.3:4000", True),
        ("Cannot parse 'my password is swordfish and my'", False),
        ("Moderated: short one", False),
    ],
)
async def test_a_fault_holds_neither_keys_nor_the_prompt(message: str, shown: bool) -> None:
    asked = ModelRequest(
        "m",
        (
            ModelMessage("user", "Dear model, my password is swordfish and my cat knows"),
            ModelMessage("user", "short one"),
        ),
        key="sk-abcdef0123456789",
    )
    for status in (400, 500):
        text = str(await fault_of(answering(status, {"error": {"message": message}}), asked))
        assert (message.split(" ", maxsplit=1)[0] in text) is shown
        for private in ("abcdef", "swordfish", "short one", "10.1.2.3"):
            assert private not in text


@pytest.mark.parametrize(
    "fail", [{"drop_after": 3}, {"error_after": 3}, {"no_done": True}, {"hang_after": 3}, {"drop_after": 0}]
)
async def test_an_answer_that_breaks_off_is_a_fault_and_the_next_try_is_whole(
    model: OpenAICompatibleModel, fail: dict[str, Any]
) -> None:
    asked = request(script({"text": "one two three four", "pieces_per_s": 0, "fail": fail}, key=json.dumps(fail)))
    with pytest.raises(ModelUnavailableError):
        await listen(model, asked)
    text, _ = await listen(model, asked)
    assert text == "one two three four"


async def test_an_end_mark_without_a_reason_is_a_fault() -> None:
    assert type(await fault_of(events({"choices": [{"delta": {"content": "So"}}]}, "[DONE]"))) is ModelUnavailableError


async def test_silence_before_the_first_byte_is_bounded() -> None:
    async def silent(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    began = time.monotonic()
    assert type(await fault_of(silent)) is ModelUnavailableError
    assert time.monotonic() - began < 20


def many(delta: Any, count: int) -> Reply:
    async def reply(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for number in range(count):
            writer.write(event({"choices": [{"delta": delta(number)}]}))
            await writer.drain()
        writer.write(event(STOP) + event("[DONE]"))

    return reply


def call_piece(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (many(lambda _: {"content": "x" * 300_000}, 4), "longer than"),
        (many(lambda _: call_piece(0, "x" * 300_000), 4), "longer than"),
        (many(lambda number: call_piece(number, ""), 65), "more than 64"),
    ],
    ids=["text", "arguments", "calls"],
)
async def test_an_answer_beyond_all_bounds_is_refused(reply: Reply, words: str) -> None:
    fault = await fault_of(reply)
    assert type(fault) is ModelRefusedError
    assert words in str(fault)


async def test_a_line_without_end_is_refused() -> None:
    async def endless(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _number in range(100):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    assert "isn't a stream" in str(await fault_of(endless))


async def test_a_cancelled_call_ends_the_request_at_the_server(scripted: str, model: OpenAICompatibleModel) -> None:
    asked, heard = request(script({"tokens": 10_000, "rate": 100}, key="left")), asyncio.Event()
    asking = asyncio.create_task(model.answer(asked, lambda _: heard.set()))
    await heard.wait()
    asking.cancel()
    await asyncio.wait([asking])
    async with asyncio.timeout(10), httpx.AsyncClient() as client:
        while True:
            calls = (await client.get(f"{scripted}/calls")).json()["calls"]
            if calls["left/0"]["cut"] == 1:
                break
            await asyncio.sleep(0.02)


async def test_150_answers_at_once_from_one_pool(model: OpenAICompatibleModel) -> None:
    async def one(number: int) -> None:
        text, end = await listen(model, request(script({"tokens": 20, "rate": 40}, key=str(number))))
        assert (text, end.usage and end.usage.output_tokens) == ("".join(f"t{n} " for n in range(20)), 20)

    async with asyncio.TaskGroup() as group:
        for number in range(150):
            group.create_task(one(number))


async def test_a_connection_serves_the_next_answer() -> None:
    server = WireServer(events(STOP, "[DONE]"))
    async with server.up() as address:
        opened = OpenAICompatibleModel(ModelServer(address))
        for _ in range(3):
            await listen(opened, request())
        await opened.close()
    assert (len(server.asked), server.connections) == (3, 1)


LISTED = {
    "data": [
        {"id": "b", "max_model_len": 4096},
        {"id": "a", "context_length": 1000, "pricing": {"prompt": "0.5", "completion": "1"}},
    ]
}


async def test_models_are_sorted_and_asked_for_once_a_minute() -> None:
    server = WireServer(answering(200, LISTED))
    async with server.up() as address:
        opened = OpenAICompatibleModel(ModelServer(address, prices=(Decimal(2), Decimal(3))))
        assert opened.default_model == ""
        listed = await asyncio.gather(*(opened.models() for _ in range(5)))
        assert listed[0] == [
            ModelInfo("a", Decimal("0.5"), Decimal(1), 1000),
            ModelInfo("b", Decimal(2), Decimal(3), 4096),
        ]
        assert opened.default_model == "b"
        assert len(server.asked) == 1
        await opened.ready()
        assert len(server.asked) == 2
        await opened.close()


async def test_a_request_without_a_model_takes_the_first_one(scripted: str) -> None:
    opened = OpenAICompatibleModel(ModelServer(f"{scripted}/v1"))
    text, _ = await listen(opened, request("hi", model=""))
    assert text
    assert opened.default_model == "demo"
    await opened.close()


async def test_litellms_knowledge_of_its_models_is_no_must() -> None:
    async def reply(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        is_list = server.paths[-1].endswith("/models")
        await answering(*((200, LISTED) if is_list else (403, {"error": "not for you"})))({}, writer)

    server = WireServer(reply)
    async with server.up() as address:
        opened = OpenAICompatibleModel(ModelServer(address, is_litellm=True))
        assert [info.id for info in await opened.models()] == ["a", "b"]
        assert server.paths == ["/v1/models", "/v1/model/info"]
        await opened.close()


async def test_a_server_that_is_away_is_said_to_be() -> None:
    settings = ModelSettings("test", openai_api_base=f"http://127.0.0.1:{free_port()}/v1")
    async with open_language_model(settings) as (opened, keys):
        assert keys is None
        for asking in (opened.ready, opened.models):
            with pytest.raises(ModelUnavailableError, match="can't be reached"):
                await asking()
        with pytest.raises(ModelUnavailableError):
            await listen(opened, request())


async def test_without_any_server_one_is_told_what_to_set() -> None:
    async with open_language_model(ModelSettings("test")) as (opened, _):
        assert await opened.models() == []
        with pytest.raises(ModelMissingError, match="OPENAI_API_BASE"):
            await listen(opened, request())
