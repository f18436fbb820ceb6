"""OpenAI's shapes, to the letter: chunks of a stream, whole answers, errors, the list of models."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from workers.scripted_model.answer import Answer, Usage

DONE = b"data: [DONE]\n\n"
_MIN_ARGUMENT_PIECE = 24
_ARGUMENT_PIECES = 16


class ChunkWriter:
    """Writes the chunks of one stream. All but the delta is the same in each, so it is made once."""

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._same: dict[str, Any] = {
            "id": _completion_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }
        self._before = json.dumps(self._same)[:-1] + ', "choices": [{"index": 0, "delta": '
        self._with_usage = with_usage
        self._after = ', "logprobs": null, "finish_reason": null}]' + (', "usage": null' if with_usage else "") + "}"

    def delta(self, delta: Mapping[str, Any]) -> bytes:
        """A chunk in the middle."""
        return f"data: {self._before}{json.dumps(delta)}{self._after}\n\n".encode()

    def end(self, finish_reason: str, usage: Usage) -> bytes:
        """The chunk with the reason of the end and, where it was asked for, the one with the usage."""
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish_reason}
        chunks = [{**self._same, "choices": [choice]}]
        if self._with_usage:
            chunks = [{**chunks[0], "usage": None}, {**self._same, "choices": [], "usage": usage_body(usage)}]
        return b"".join(event(chunk) for chunk in chunks)


def event(body: Mapping[str, Any]) -> bytes:
    """A JSON object as an event of a stream."""
    return f"data: {json.dumps(body)}\n\n".encode()


def opening_delta() -> dict[str, Any]:
    """What a stream begins with."""
    return {"role": "assistant", "content": "", "refusal": None}


def deltas(answer: Answer) -> Iterator[tuple[float, dict[str, Any]]]:
    """The pieces of an answer, each with when it is due: seconds after the first one.

    The text has its pace; a call comes as its id and name, then pieces of its arguments, at once after the text.
    """
    step = 1 / answer.pieces_per_s if answer.pieces_per_s else 0.0
    for number, piece in enumerate(answer.pieces):
        yield number * step, {"content": piece}
    due = len(answer.pieces) * step
    for index, call in enumerate(answer.calls):
        head = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield due, {"tool_calls": [{"index": index, **head}]}
        size = max(_MIN_ARGUMENT_PIECE, -(-len(call.arguments) // _ARGUMENT_PIECES))
        for start in range(0, len(call.arguments), size):
            piece = call.arguments[start : start + size]
            yield due, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def completion(model: str, answer: Answer) -> dict[str, Any]:
    """A whole answer, for a request without `stream`."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
    return {
        "id": _completion_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": usage_body(answer.usage),
    }


def usage_body(usage: Usage) -> dict[str, int]:
    """`usage` in chunks and answers."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }


def model_list(names: list[str]) -> dict[str, Any]:
    """The answer of `GET /v1/models`."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "scripted"} for name in names]
    return {"object": "list", "data": data}


def error_body(
    message: str, *, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI words it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _completion_id() -> str:
    return f"chatcmpl-{uuid4().hex}"
