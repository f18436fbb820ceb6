"""Plays an answer to its client, at its pace, until its end, its break, or until the client goes."""

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from starlette.types import Receive, Scope, Send

from workers.scripted_model.answer import Answer, BreakKind
from workers.scripted_model.counters import Counters, Outcome
from workers.scripted_model.wire import DONE, ChunkWriter, completion, deltas, error_body, event, opening_delta

_PIECES_AT_ONCE = 64
_DROPPED_BODY = error_body("The server had an error while processing your request.", kind="server_error")


class Playing:
    """The response to one request: an ASGI application, since an ordinary response can't be cut in its middle."""

    def __init__(self, answer: Answer, model: str, counters: Counters, *, stream: bool, with_usage: bool) -> None:
        self._answer = answer
        self._model = model
        self._counters = counters
        self._stream = stream
        self._chunks = ChunkWriter(model, with_usage=with_usage)

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Play it, and count how it ended."""
        playing = asyncio.create_task(self._play(_Body(send)))
        leaving = asyncio.create_task(_wait_until_left(receive))
        outcome = Outcome.CUT
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                outcome = playing.result()
        finally:
            playing.cancel()
            leaving.cancel()
            self._counters.end(self._answer.key, outcome)
            await asyncio.gather(playing, leaving, return_exceptions=True)

    async def _play(self, body: "_Body") -> Outcome:
        if self._stream:
            await body.start("text/event-stream; charset=utf-8")
            return await self._play_stream(body)
        return await self._play_whole(body)

    async def _play_stream(self, body: "_Body") -> Outcome:
        answer, breaks = self._answer, self._answer.breaks
        await asyncio.sleep(answer.first_delay_s)
        await body.write(self._chunks.delta(opening_delta()))
        pieces = deltas(answer)
        if breaks is None or breaks.kind is BreakKind.NO_DONE:
            await self._write_paced(body, pieces)
            await body.write(self._chunks.end(answer.finish_reason, answer.usage))
            await body.end(DONE if breaks is None else b"")
            return Outcome.FINISHED if breaks is None else Outcome.FAILED
        await self._write_paced(body, islice(pieces, breaks.after))
        if breaks.kind is BreakKind.HANG:
            await asyncio.Event().wait()
        if breaks.kind is BreakKind.ERROR:
            await body.end(event(breaks.body or _DROPPED_BODY))
        # A body that was not ended makes the server cut the connection.
        return Outcome.FAILED

    async def _write_paced(self, body: "_Body", pieces: Iterator[tuple[float, dict[str, Any]]]) -> None:
        """Each piece at its own time, counted from the first: lateness doesn't add up. What is late goes together."""
        clock = asyncio.get_running_loop()
        began = clock.time()
        waiting: list[bytes] = []
        for due, delta in pieces:
            pause = began + due - clock.time()
            if pause > 0 or len(waiting) == _PIECES_AT_ONCE:
                await body.write(b"".join(waiting))
                waiting.clear()
                await asyncio.sleep(max(0.0, pause))
            waiting.append(self._chunks.delta(delta))
        await body.write(b"".join(waiting))

    async def _play_whole(self, body: "_Body") -> Outcome:
        """The same without a stream: the break comes when its piece would have."""
        answer, breaks = self._answer, self._answer.breaks
        after = None if breaks is None or breaks.kind is BreakKind.NO_DONE else breaks.after
        last_due = max((due for due, _ in islice(deltas(answer), after)), default=0.0)
        await asyncio.sleep(answer.first_delay_s + last_due)
        text = json.dumps(completion(self._model, answer)).encode()
        if after is None or breaks is None:
            await body.start("application/json", length=len(text))
            await body.end(text)
            return Outcome.FINISHED
        if breaks.kind is BreakKind.HANG:
            await asyncio.Event().wait()
        if breaks.kind is BreakKind.ERROR:
            error = json.dumps(breaks.body or _DROPPED_BODY).encode()
            await body.start("application/json", status=500, length=len(error))
            await body.end(error)
            return Outcome.FAILED
        await body.start("application/json", length=len(text))
        await body.write(text[: len(text) // 2])
        return Outcome.FAILED


class _Body:
    """The bytes of a response."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def start(self, media_type: str, *, status: int = 200, length: int | None = None) -> None:
        headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-cache")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
