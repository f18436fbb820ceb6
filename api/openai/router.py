"""`/v1`: OpenAI's routes, for clients that exist already. The budget and the key behind them are the user's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any, Final, TypeVar, cast

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from activities.errors import ModelFault, ModelMissingError
from activities.ports import CompletionPiece, ModelInfo
from api.auth.access import still_allowed
from api.auth.dependencies import CurrentUser
from api.consoles.service import Places
from api.errors import problem_of
from api.openai.calls import Call, visible
from api.openai.errors import PREFIX, error_of
from api.openai.requests import CompletionRequest, parse
from api.openai.schemas import REQUEST_BODY, ModelCard, ModelCards
from api.services import Services, ServicesDep
from api.sse import ServerSentEvent, event_stream

router = APIRouter(prefix=PREFIX, tags=["openai"])

CALLS_PER_USER: Final = 64
"""At a time, in one API process."""
_CALLS = Places(CALLS_PER_USER, "model calls")
_CLIENT_CLOSED_REQUEST: Final = 499

Result = TypeVar("Result")


@router.get("/models")
async def list_models(_user: CurrentUser, services: ServicesDep) -> ModelCards:
    """The models that can be asked for."""
    return ModelCards(data=[ModelCard(id=info.id) for info in await services.models.models()])


@router.get("/models/{model:path}")
async def get_model(_user: CurrentUser, services: ServicesDep, model: str) -> ModelCard:
    """One model."""
    if _named(model, await services.models.models()) is None:
        raise ModelMissingError(f"The model `{model[:200]}` does not exist.")
    return ModelCard(id=model)


@router.post("/chat/completions", openapi_extra=REQUEST_BODY)
async def create_chat_completion(user: CurrentUser, services: ServicesDep, request: Request) -> Response:
    """Answer a conversation, whole or as a stream of chunks. `n` is 1; unknown fields are passed on as they are.

    A client that leaves ends the call, and pays for what had come.
    """
    try:
        asked, info = await _read(services, request)
    except ClientDisconnect:
        return _gone()
    async with AsyncExitStack() as held:
        held.enter_context(_CALLS.take(user.user_id))
        call = Call(services, user.user_id, asked, info)
        held.push_async_callback(call.end)
        if not asked.stream:
            answer = await _unless_gone(request, call.complete())
            return _gone() if answer is None else Response(_json(answer.body), media_type="application/json")
        # The answer begins when the server's does: until then an error has a status of its own.
        opened = await _unless_gone(request, _opened(call))
        if opened is None:
            return _gone()
        frames = _frames(call, opened[0], shows_usage=asked.shows_usage)
        return _Holding(event_stream(frames, allowed=partial(still_allowed, services, user)), held.pop_all())


async def _read(services: Services, request: Request) -> tuple[CompletionRequest, ModelInfo | None]:
    infos = await services.models.models()
    asked = parse(
        await request.body(),
        default_model=services.models.default_model,
        max_output_tokens=services.config.model_max_output_tokens,
    )
    return asked, _named(asked.model, infos)


def _named(model: str, infos: list[ModelInfo]) -> ModelInfo | None:
    return next((info for info in infos if info.id == model), None)


async def _opened(call: Call) -> tuple[CompletionPiece | None]:
    return (await call.open(),)


async def _frames(call: Call, first: CompletionPiece | None, *, shows_usage: bool) -> AsyncIterator[ServerSentEvent]:
    """The chunks; at last the end mark, or an error where the answer broke off. It is settled before either is told."""
    last = "[DONE]"
    try:
        async with aclosing(call.chunks(first)) as pieces:
            async for piece in pieces:
                shown = visible(piece, shows_usage=shows_usage)
                if shown is not None:
                    yield ServerSentEvent(_json(shown))
    except ModelFault as fault:
        problem = problem_of(fault)
        last = _json({"error": {"message": str(fault)}} if problem is None else error_of(problem))
    await call.end()
    yield ServerSentEvent(last)


class _Holding(Response):
    """An answer that lets go of what it holds when it has ended, in whichever way."""

    def __init__(self, answer: Response, held: AsyncExitStack) -> None:
        super().__init__()
        self._answer = answer
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._held:
            await self._answer(scope, receive, send)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` gives; None when the client has gone before, `work` cancelled. The body must have been read."""
    working = asyncio.create_task(work, name="model call")
    leaving = asyncio.create_task(_until_gone(request), name="model call's client")
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait([working, leaving])
        if not working.cancelled():
            working.exception()  # looked at: nobody is there to be told


async def _until_gone(request: Request) -> None:
    while cast("Mapping[str, object]", await request.receive())["type"] != "http.disconnect":
        continue


def _gone() -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(dict(body), separators=(",", ":"))
