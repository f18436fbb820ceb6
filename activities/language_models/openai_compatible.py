"""`LanguageModel` over any server that speaks OpenAI's chat completions: LiteLLM's proxy, a provider, a local one."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from activities.errors import ModelFault
from activities.language_models.answer import Answer, Prices, read_amount
from activities.language_models.faults import ServerError, read_error, to_fault
from activities.language_models.wire import (
    Patience,
    ask,
    hear,
    is_stream,
    make_client,
    open_stream,
    read_chunk,
    read_json,
)
from activities.ports import (
    ModelEnd,
    ModelInfo,
    ModelMessage,
    ModelRequest,
    RequestedCall,
    ToolSchema,
    media_type_of,
)

END_MARK = "[DONE]"
_OK = 200
_REMEMBERED_S = 60.0
_COMPLETION_TOKENS_HOSTS = ("api.openai.com", ".openai.azure.com")
"""Where a request that says `max_tokens` is refused for today's models."""


@dataclass(frozen=True)
class ModelServer:
    """Where the models are. `base_url` ends with the version, e.g. `https://api.openai.com/v1`.

    `key`: the service's own. `default_model` None: the first that the server offers. `prices` in USD for a token, for
    a server that doesn't tell what a call has cost. `is_litellm`: it also tells prices and bounds of its models.
    """

    base_url: str
    key: str | None = None
    default_model: str | None = None
    prices: Prices | None = None
    is_litellm: bool = False

    @property
    def bound_name(self) -> str:
        """What a request calls the bound on its answer's tokens."""
        host = urlsplit(self.base_url).hostname or ""
        return "max_completion_tokens" if host.endswith(_COMPLETION_TOKENS_HOSTS) else "max_tokens"


class OpenAICompatibleModel:
    """Streams answers from one server; a request without a model's name goes to the default one."""

    def __init__(self, server: ModelServer, *, patience: Patience | None = None) -> None:
        self._server = server
        self._patience = patience or Patience()
        self._client = make_client(server.base_url.rstrip("/"), self._patience)
        self._offered_first = ""
        self._known: list[ModelInfo] = []
        self._known_until = 0.0
        self._asking = asyncio.Lock()

    @property
    def default_model(self) -> str:
        """The configured one, else the first that the server offers; empty as long as it has never answered."""
        return self._server.default_model or self._offered_first

    async def answer(self, request: ModelRequest, tell: Callable[[str], None]) -> ModelEnd:
        """Ask, and tell the answer as it comes; see the port."""
        model = request.model or self.default_model or await self._first_model()
        body = {**_body(request), "model": model, self._server.bound_name: request.max_output_tokens}
        key = request.key or self._server.key
        answer = Answer(self._server.prices)
        async with open_stream(
            self._client, "/chat/completions", key=key, body=body, patience=self._patience
        ) as response:
            if not is_stream(response):
                status = response.status_code if response.status_code != _OK else None
                error = read_error(status, await read_json(response, self._patience.short_answer_s), response.headers)
                raise _fault(error, request, model)

            def take(data: str) -> bool:
                if data == END_MARK:
                    return True
                for text in answer.take(_chunk(data, request, model)):
                    tell(text)
                return False

            await hear(response, self._patience, take)
            return answer.end()

    async def models(self) -> list[ModelInfo]:
        """The models that the server offers, sorted by id; remembered for a minute."""
        async with self._asking:
            if time.monotonic() >= self._known_until:
                listed = await self._list()
                self._offered_first = listed[0].id if listed else ""
                told = await self._told_by_litellm() if self._server.is_litellm else {}
                self._known = sorted((told.get(info.id, info) for info in listed), key=lambda info: info.id)
                self._known_until = time.monotonic() + _REMEMBERED_S
            return list(self._known)

    async def ready(self) -> None:
        """Raise a fault that says why when the server doesn't answer now."""
        await self._list()

    async def close(self) -> None:
        """Let connections go."""
        await self._client.aclose()

    async def _first_model(self) -> str:
        await self.models()
        if not self.default_model:
            raise to_fault(ServerError(404), model="by default: it offers none")
        return self.default_model

    async def _list(self) -> list[ModelInfo]:
        status, body, headers = await ask(self._client, "GET", "/models", key=self._server.key)
        if status != _OK:
            raise to_fault(read_error(status, body, headers), model="list")
        items = _items(body)
        return [self._listed(item) for item in items if isinstance(item.get("id"), str) and item["id"]]

    def _listed(self, item: Mapping[str, Any]) -> ModelInfo:
        """A model as the plain list has it; some servers tell more of it than OpenAI's does."""
        pricing = item.get("pricing")
        told: Mapping[str, Any] = pricing if isinstance(pricing, dict) else {}
        given = self._server.prices or (None, None)
        return ModelInfo(
            id=item["id"],
            input_price=_first(read_amount(told.get("prompt")), given[0]),
            output_price=_first(read_amount(told.get("completion")), given[1]),
            context_tokens=_tokens(item.get("context_length")) or _tokens(item.get("max_model_len")),
        )

    async def _told_by_litellm(self) -> dict[str, ModelInfo]:
        """What the proxy knows of its models; nothing is no error, the list alone will do."""
        try:
            status, body, _ = await ask(self._client, "GET", "/model/info", key=self._server.key)
        except ModelFault:
            return {}
        if status != _OK:
            return {}
        infos = (_litellm_info(item) for item in _items(body) if isinstance(item.get("model_name"), str))
        return {info.id: info for info in infos}


def _body(request: ModelRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    return body


def _message(message: ModelMessage) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        sent["tool_calls"] = [_call(call) for call in message.tool_calls]
        sent["content"] = message.content or None  # some providers refuse empty text beside calls
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    if message.images:
        sent["content"] = [{"type": "text", "text": message.content}, *map(_image, message.images)]
    return sent


def _image(data: bytes) -> dict[str, Any]:
    url = f"data:{media_type_of(data)};base64,{b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _call(call: RequestedCall) -> dict[str, Any]:
    """A call as it is told to the model again: servers fail on arguments that aren't an object, so those are left out;
    the observation beside it says what was wrong.
    """
    try:
        is_object = isinstance(json.loads(call.arguments), dict)
    except ValueError:
        is_object = False
    arguments = call.arguments if is_object else "{}"
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _chunk(data: str, request: ModelRequest, model: str) -> Mapping[str, Any]:
    """The JSON of an event. Raises the fault that an error in mid-stream stands for."""
    chunk = read_chunk(data)
    if chunk.get("error"):
        raise _fault(read_error(None, chunk), request, model)
    return chunk


def _fault(error: ServerError, request: ModelRequest, model: str) -> ModelFault:
    return to_fault(error, model=model, private=_private(request))


def _private(request: ModelRequest) -> Iterator[str]:
    """What may not show in a fault."""
    if request.key:
        yield request.key
    for message in request.messages:
        yield message.content
        for call in message.tool_calls:
            yield call.arguments


def _litellm_info(item: Mapping[str, Any]) -> ModelInfo:
    info = item.get("model_info")
    told: Mapping[str, Any] = info if isinstance(info, dict) else {}
    return ModelInfo(
        id=item["model_name"],
        input_price=read_amount(told.get("input_cost_per_token")),
        output_price=read_amount(told.get("output_cost_per_token")),
        context_tokens=_tokens(told.get("max_input_tokens")) or _tokens(told.get("max_tokens")),
        calls_tools=told.get("supports_function_calling") is not False,
        sees_images=told.get("supports_vision") is True,
    )


def _items(body: object) -> list[dict[str, Any]]:
    data = body.get("data") if isinstance(body, dict) else body
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []


def _tokens(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _first(told: Decimal | None, given: Decimal | None) -> Decimal | None:
    return given if told is None else told
