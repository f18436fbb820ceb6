"""Running a command for a request: whole, or as a stream, and never beyond the request's own life."""

import asyncio
import codecs
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import cast

from fastapi import Request

from activities.errors import RuntimeFault
from activities.ports import ExecExit, ExecOutput, ExecSpec
from api.consoles.schemas import MAX_OUTPUT, ExecIn, ExecOut
from api.consoles.service import EXECS, keeping_awake
from api.errors import problem_of
from api.services import Services
from api.sse import ServerSentEvent
from storage.projects import ProjectRecord
from workflows.contracts.dev_servers import LeaseKind
from workflows.contracts.errors import StudioError


class _Gathered:
    """One stream's output up to the bound."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.truncated = False

    def add(self, piece: bytes) -> None:
        room = MAX_OUTPUT - len(self.data)
        self.data += piece[:room]
        self.truncated = self.truncated or len(piece) > room

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


async def run_whole(services: Services, project: ProjectRecord, body: ExecIn, request: Request) -> ExecOut | None:
    """Run it to its end; None when the client has gone before, its process tree killed."""
    with EXECS.take(project.user_id):
        running = asyncio.create_task(_run(services, project, body), name="exec")
        leaving = asyncio.create_task(_until_gone(request), name="exec's client")
        try:
            await asyncio.wait([running, leaving], return_when=asyncio.FIRST_COMPLETED)
            return running.result() if running.done() else None
        finally:
            for task in (running, leaving):
                task.cancel()
            await asyncio.wait([running, leaving])


async def _run(services: Services, project: ProjectRecord, body: ExecIn) -> ExecOut:
    began = time.monotonic()
    streams = {"stdout": _Gathered(), "stderr": _Gathered()}
    exit_code = -1
    async with (
        keeping_awake(services, project, LeaseKind.EXEC),
        aclosing(services.runtime.exec(project.ref, _spec(body))) as items,  # type: ignore[type-var]  # drivers' iterators are generators
    ):
        async for item in items:
            if isinstance(item, ExecOutput):
                streams[item.stream].add(item.data)
            else:
                exit_code = item.exit_code
    return ExecOut(
        exit_code=exit_code,
        stdout=streams["stdout"].text,
        stderr=streams["stderr"].text,
        duration_ms=round((time.monotonic() - began) * 1000),
        truncated=any(stream.truncated for stream in streams.values()),
    )


async def run_streamed(services: Services, project: ProjectRecord, body: ExecIn) -> AsyncIterator[ServerSentEvent]:
    """Frames `stdout` and `stderr` `{text}`, last `exit` `{exit_code, timed_out, duration_ms}`, or `error`."""
    try:
        with EXECS.take(project.user_id):
            async with (
                keeping_awake(services, project, LeaseKind.EXEC),
                aclosing(services.runtime.exec(project.ref, _spec(body))) as items,  # type: ignore[type-var]  # as above
            ):
                async for shown in _frames_of(items):
                    yield shown
    except (RuntimeFault, StudioError) as error:
        yield error_frame(error)


async def _frames_of(items: AsyncIterator[ExecOutput | ExecExit]) -> AsyncIterator[ServerSentEvent]:
    began = time.monotonic()
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
    async for item in items:
        if isinstance(item, ExecOutput):
            if text := decoders[item.stream].decode(item.data):
                yield frame(item.stream, {"text": text})
            continue
        for name, decoder in decoders.items():
            if text := decoder.decode(b"", final=True):
                yield frame(name, {"text": text})
        duration_ms = round((time.monotonic() - began) * 1000)
        yield frame("exit", {"exit_code": item.exit_code, "timed_out": item.timed_out, "duration_ms": duration_ms})


def frame(event: str, data: Mapping[str, object]) -> ServerSentEvent:
    """A frame with JSON in it."""
    return ServerSentEvent(json.dumps(dict(data), ensure_ascii=False), event=event)


def error_frame(error: RuntimeFault | StudioError) -> ServerSentEvent:
    """What went wrong after the answer had begun: `error` `{code, detail, retryable}`."""
    problem = problem_of(error)
    code, detail = (error.code, str(error)) if problem is None else (problem.code, problem.detail)
    return frame("error", {"code": code, "detail": detail, "retryable": error.retryable})


def _spec(body: ExecIn) -> ExecSpec:
    return ExecSpec(body.command, cwd=body.cwd, environment=body.env, timeout_s=body.timeout_s)


async def _until_gone(request: Request) -> None:
    """Return when the client has closed its connection; the body has been read before."""
    while True:
        message = cast("dict[str, object]", await request.receive())
        if message["type"] == "http.disconnect":
            return
