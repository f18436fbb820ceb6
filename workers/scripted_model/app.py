"""The server's routes: OpenAI's two, `/healthz`, and `/calls` for tests."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from workers.scripted_model.answer import Answer, Refusal
from workers.scripted_model.conversation import ChatRequest
from workers.scripted_model.counters import Counters, Outcome
from workers.scripted_model.demo import KEY as DEMO_KEY
from workers.scripted_model.demo import answer_demo
from workers.scripted_model.playing import Playing
from workers.scripted_model.scripted import ScriptError, answer_scripted
from workers.scripted_model.wire import error_body, model_list

DEMO = "demo"
SCRIPTED = "scripted"
_BODY_LIMIT = 32 * 1024 * 1024


def create_app() -> Starlette:
    """The server as an ASGI application, with counters of its own."""
    server = _Server()
    return Starlette(
        routes=[
            Route("/healthz", server.health),
            Route("/calls", server.calls),
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", server.complete, methods=["POST"]),
        ]
    )


class _Server:
    def __init__(self) -> None:
        self._counters = Counters()

    async def health(self, _: Request) -> ASGIApp:
        return JSONResponse({"status": "ok"})

    async def calls(self, _: Request) -> ASGIApp:
        """`{"calls": {key: {"begun": n, "finished": n, "cut": n, "failed": n, "refused": n}}}`."""
        return JSONResponse({"calls": self._counters.all()})

    async def models(self, _: Request) -> ASGIApp:
        return JSONResponse(model_list([DEMO, SCRIPTED]))

    async def complete(self, request: Request) -> ASGIApp:
        """Decide what to say, and play it."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _BODY_LIMIT:
                return _refuse(413, error_body(f"The request is longer than {_BODY_LIMIT} bytes."))
        try:
            asked = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(word) for word in problem["loc"])
            return _refuse(400, error_body(f"{where}: {problem['msg']}", param=where or None))
        return self._answer(asked)

    def _answer(self, asked: ChatRequest) -> ASGIApp:
        try:
            answer = self._decide(asked)
        except ScriptError as error:
            return _refuse(400, error_body(str(error), param="messages", code="bad_script"))
        if answer is None:
            message = f"The model `{asked.model}` does not exist or you do not have access to it."
            return _refuse(404, error_body(message, code="model_not_found"))
        if isinstance(answer, Refusal):
            self._counters.end(answer.key, Outcome.REFUSED)
            return _refuse(answer.status, answer.body, answer.headers)
        return Playing(
            answer, asked.model, self._counters, stream=bool(asked.stream), with_usage=asked.wants_usage_chunk
        )

    def _decide(self, asked: ChatRequest) -> Answer | Refusal | None:
        if asked.model == DEMO:
            self._counters.begin(DEMO_KEY)
            return answer_demo(asked)
        return answer_scripted(asked, self._counters) if asked.model.startswith(SCRIPTED) else None


def _refuse(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(dict(body), status_code=status, headers=headers)
