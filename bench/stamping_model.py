"""A model server whose tokens say when they were sent: `python -m bench.stamping_model PORT`.

OpenAI's wire format, nothing but what the benchmark asks for: `{"tokens": N, "rate": R}` in the newest user message
makes N tokens at R a second, each the moment's monotonic clock, which all processes of a machine share; `{"calls": N}`
makes N answers that each call the tool `todo`, then one that ends.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

_TODO = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "todo", "arguments": '{"items": []}'}}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "stamped", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def _tokens(count: int, rate: float) -> AsyncIterator[bytes]:
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        yield _chunk({"content": f"{time.monotonic():.6f} "})
    yield _chunk({}, "stop")
    yield b"data: [DONE]\n\n"


async def _call() -> AsyncIterator[bytes]:
    yield _chunk({"tool_calls": [_TODO]})
    yield _chunk({}, "tool_calls")
    yield b"data: [DONE]\n\n"


async def complete(request: Request) -> StreamingResponse:
    """Answer as the newest user message says."""
    messages = (await request.json())["messages"]
    wanted = json.loads(next(message["content"] for message in reversed(messages) if message["role"] == "user"))
    answered = sum(message["role"] == "assistant" for message in messages)
    if answered < wanted.get("calls", 0):
        return StreamingResponse(_call(), media_type="text/event-stream")
    body = _tokens(wanted.get("tokens", 1), wanted.get("rate", 50.0))
    return StreamingResponse(body, media_type="text/event-stream")


async def models(_: Request) -> JSONResponse:
    """The one model."""
    return JSONResponse({"object": "list", "data": [{"id": "stamped", "object": "model"}]})


app = Starlette(
    routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/v1/models", models, methods=["GET"])]
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, timeout_graceful_shutdown=1)
