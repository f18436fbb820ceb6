"""One answer as its pieces come: text is handed on, tool calls are joined, and what there is of either is bounded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import uuid4

from activities.errors import ModelRefusedError, ModelUnavailableError
from activities.ports import ModelEnd, ModelUsage, RequestedCall

TEXT_LIMIT = 1024 * 1024
ARGUMENTS_LIMIT = 1024 * 1024
CALLS_LIMIT = 64

Prices = tuple[Decimal, Decimal]
"""Of a token in and of a token out, in USD."""


@dataclass
class _Call:
    """A tool call that is still coming."""

    id: str
    name: str
    arguments: list[str]


class Answer:
    """The state of one answer: give each chunk to `take`, and ask for `end` after the end mark.

    `prices`: what it cost when the server doesn't say.
    """

    def __init__(self, prices: Prices | None) -> None:
        self._prices = prices
        self._calls: dict[int, _Call] = {}
        self._text_size = 0
        self._arguments_size = 0
        self._finish_reason = ""
        self._usage: ModelUsage | None = None

    def take(self, chunk: Mapping[str, Any]) -> Iterator[str]:
        """The pieces of text in a chunk. Raises `ModelRefusedError` for an answer beyond all bounds."""
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = read_usage(usage, self._prices)
        for choice in _dicts(chunk.get("choices"))[:1]:
            if reason := choice.get("finish_reason"):
                self._finish_reason = str(reason)
            delta = choice.get("delta")
            if isinstance(delta, dict):
                for piece in _dicts(delta.get("tool_calls")):
                    self._take_call(piece)
                yield from self._texts(delta)

    def end(self) -> ModelEnd:
        """What the answer came to. Raises `ModelUnavailableError` when the model had not finished."""
        if not self._finish_reason:
            raise ModelUnavailableError("The model's answer ended without saying why.")
        calls = (RequestedCall(call.id, call.name, "".join(call.arguments)) for call in self._calls.values())
        return ModelEnd(self._finish_reason, tuple(calls), self._usage)

    def _texts(self, delta: Mapping[str, Any]) -> Iterator[str]:
        for name in ("content", "refusal"):
            text = delta.get(name)
            if isinstance(text, str) and text:
                self._text_size += len(text)
                if self._text_size > TEXT_LIMIT:
                    raise ModelRefusedError(f"The model's answer is longer than {TEXT_LIMIT} characters.")
                yield text

    def _take_call(self, piece: Mapping[str, Any]) -> None:
        call = self._call_of(piece)
        function = piece.get("function")
        if not isinstance(function, dict):
            return
        call.name = call.name or str(function.get("name") or "")
        arguments = function.get("arguments")
        if not isinstance(arguments, str):  # some servers send the object itself
            arguments = "" if arguments is None else json.dumps(arguments)
        self._arguments_size += len(arguments)
        if self._arguments_size > ARGUMENTS_LIMIT:
            raise ModelRefusedError(f"The model's tool calls are longer than {ARGUMENTS_LIMIT} characters.")
        call.arguments.append(arguments)

    def _call_of(self, piece: Mapping[str, Any]) -> _Call:
        """The call that a piece belongs to: by its index, unless it comes with another id than that one's."""
        last = max(self._calls, default=-1)
        given, index = piece.get("id"), piece.get("index")
        if not isinstance(index, int):  # servers that send whole calls leave it out
            index = last + 1 if given or last < 0 else last
        known = self._calls.get(index)
        if known is not None and (not given or given == known.id):
            return known
        if known is not None:  # and servers that give all calls of an answer the index 0
            index = next((i for i, call in self._calls.items() if call.id == given), last + 1)
        if index not in self._calls:
            if len(self._calls) >= CALLS_LIMIT:
                raise ModelRefusedError(f"The model asks for more than {CALLS_LIMIT} tool calls at once.")
            self._calls[index] = _Call(str(given or f"call_{uuid4().hex[:24]}"), "", [])
        return self._calls[index]


def read_usage(usage: Mapping[str, Any], prices: Prices | None) -> ModelUsage:
    """Tokens and cost; the server's own word on the cost goes before `prices`."""
    tokens_in, tokens_out = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    cost = read_amount(usage.get("cost"))
    if cost is None and prices is not None:
        cost = tokens_in * prices[0] + tokens_out * prices[1]
    return ModelUsage(tokens_in, tokens_out, cost)


def read_amount(value: object) -> Decimal | None:
    """An amount of money out of JSON; None for what isn't one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount >= 0 else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
