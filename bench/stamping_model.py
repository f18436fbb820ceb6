"""A model server whose tokens say when they were sent: `python -m bench.stamping_model PORT`.

OpenAI's wire format, nothing but what the benchmark asks for: `{"tokens": N, "rate": R}` in the newest user message
makes N tokens at R a second, each the moment's monotonic clock, which all processes of a machine share; `{"calls": N}`
makes N answers that each call the tool `todo`, then one that ends.

Streams only and no framework: it stands in for a machine of its own, so it may not cost much of this one.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from typing import Any

import uvloop

_TODO = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "todo", "arguments": '{"items": []}'}}
_MODELS = json.dumps({"object": "list", "data": [{"id": "stamped", "object": "model"}]}).encode()
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "stamped", "choices": [choice]}
    return _event(json.dumps(body))


_TOKEN = _chunk({"content": "STAMP "})
_END = _chunk({}, "stop") + _event("[DONE]")
_CALL = _chunk({"tool_calls": [_TODO]}) + _chunk({}, "tool_calls") + _event("[DONE]")


async def _answer(asked: dict[str, Any]) -> AsyncIterator[bytes]:
    """As the newest user message says."""
    messages = asked["messages"]
    wanted = json.loads(next(message["content"] for message in reversed(messages) if message["role"] == "user"))
    answered = sum(message["role"] == "assistant" for message in messages)
    if answered < wanted.get("calls", 0):
        yield _CALL
        return
    rate, began = wanted.get("rate", 50.0), time.monotonic()
    for number in range(wanted.get("tokens", 1)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        yield _TOKEN.replace(b"STAMP", b"%.6f" % time.monotonic())
    yield _END


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, marked, rest = head.partition(b"content-length: ")
            body = await reader.readexactly(int(rest.split(b"\r\n")[0])) if marked else b""
            if not body:
                writer.write(_JSON_HEAD % len(_MODELS) + _MODELS)
                continue
            writer.write(_STREAM_HEAD)
            async for piece in _answer(json.loads(body)):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            writer.write(b"0\r\n\r\n")
            await writer.drain()


async def _main(port: int) -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(_main(int(sys.argv[1])))
