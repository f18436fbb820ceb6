"""`ChatCompletions` over any server that speaks OpenAI's protocol: requests and answers go through as they are."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from activities.errors import ModelFault, ModelMissingError, ModelUnavailableError
from activities.language_models.answer import read_amount, read_usage
from activities.language_models.faults import read_error, to_fault
from activities.language_models.openai_compatible import END_MARK, ModelServer
from activities.language_models.wire import (
    Patience,
    drain,
    is_stream,
    make_client,
    open_stream,
    read_chunk,
    read_events,
    read_json,
)
from activities.ports import CompletionPiece, ModelUsage

_PATH: Final = "/chat/completions"
_OK: Final = 200
_BOUNDS: Final = ("max_tokens", "max_completion_tokens")
_WHOLE_ANSWER_S: Final = 600.0
"""A whole answer comes with its end, however long the model writes."""
_COST_HEADER: Final = "x-litellm-response-cost"


class PassedThrough:
    """The completions of one server."""

    def __init__(self, server: ModelServer, *, patience: Patience | None = None) -> None:
        self._server = server
        self._patience = patience or Patience()
        self._client = make_client(server.base_url.rstrip("/"), self._patience)

    async def complete(self, body: Mapping[str, Any], *, key: str | None, max_output_tokens: int) -> CompletionPiece:
        """The whole answer; see the port."""
        asked = self._bounded(body, max_output_tokens)
        patience = replace(self._patience, first_event_s=max(_WHOLE_ANSWER_S, self._patience.first_event_s))
        used_key = key or self._server.key
        async with open_stream(self._client, _PATH, key=used_key, body=asked, patience=patience) as response:
            answer = await read_json(response, self._patience.between_events_s)
            if response.status_code != _OK or not isinstance(answer, dict) or "error" in answer:
                status = response.status_code if response.status_code != _OK else None
                raise _fault(status, answer, response.headers, asked, used_key)
            return CompletionPiece(answer, self._usage(answer, response.headers))

    async def stream(
        self, body: Mapping[str, Any], *, key: str | None, max_output_tokens: int
    ) -> AsyncGenerator[CompletionPiece, None]:
        """The chunks as they come; see the port."""
        asked = self._bounded(body, max_output_tokens)
        used_key = key or self._server.key
        async with open_stream(self._client, _PATH, key=used_key, body=asked, patience=self._patience) as response:
            if not is_stream(response):
                status = response.status_code if response.status_code != _OK else None
                answer = await read_json(response, self._patience.short_answer_s)
                raise _fault(status, answer, response.headers, asked, used_key)
            async with aclosing(read_events(response, self._patience)) as events:
                async for event in events:
                    if event.data == END_MARK:
                        await drain(events)
                        return
                    chunk = _chunk(event.data, asked, used_key)
                    yield CompletionPiece(chunk, self._usage(chunk, {}))
        raise ModelUnavailableError("The model's answer broke off in the middle.")

    async def close(self) -> None:
        """Let connections go."""
        await self._client.aclose()

    def _bounded(self, body: Mapping[str, Any], max_output_tokens: int) -> dict[str, Any]:
        if any(body.get(name) is not None for name in _BOUNDS):
            return dict(body)
        return {**body, self._server.bound_name: max_output_tokens}

    def _usage(self, answer: Mapping[str, Any], headers: Mapping[str, str]) -> ModelUsage | None:
        told = answer.get("usage")
        if not isinstance(told, dict):
            return None
        usage = read_usage(told, self._server.prices)
        return usage if usage.cost_usd is not None else replace(usage, cost_usd=read_amount(headers.get(_COST_HEADER)))


class NoChatCompletions:
    """Where no server is configured: whoever asks is told so."""

    async def complete(self, body: Mapping[str, Any], *, key: str | None, max_output_tokens: int) -> CompletionPiece:
        """Raise `ModelMissingError`."""
        del body, key, max_output_tokens
        raise _nothing_configured()

    async def stream(
        self, body: Mapping[str, Any], *, key: str | None, max_output_tokens: int
    ) -> AsyncGenerator[CompletionPiece, None]:
        """Raise `ModelMissingError`."""
        yield await self.complete(body, key=key, max_output_tokens=max_output_tokens)

    async def close(self) -> None:
        """Nothing is open."""


def _chunk(data: str, asked: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """The JSON of an event. Raises the fault that an error in mid-stream stands for."""
    chunk = read_chunk(data)
    if chunk.get("error"):
        raise _fault(None, chunk, {}, asked, key)
    return chunk


def _fault(
    status: int | None, answer: object, headers: Mapping[str, str], asked: Mapping[str, Any], key: str | None
) -> ModelFault:
    # The key alone is private here: whoever reads the fault has written the prompt.
    return to_fault(
        read_error(status, answer, headers), model=str(asked.get("model", "")), private=[key] if key else []
    )


def _nothing_configured() -> ModelFault:
    return ModelMissingError("No language model is configured on this server.")
