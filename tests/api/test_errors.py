import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from structlog.testing import capture_logs
from temporalio.service import RPCError, RPCStatusCode
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from activities.errors import ContainerMissingError, NotRunningError, RuntimeUnavailableError
from api.auth.dependencies import StreamUser
from tests.api.stand import Account
from workflows.contracts.errors import (
    BadPathError,
    ConflictError,
    DeniedError,
    NotFoundError,
    PreconditionError,
    StudioError,
    ThrottledError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)

MEMBERS = {"type", "title", "status", "detail", "code", "retryable"}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert isinstance(body, dict)
    assert set(body) >= MEMBERS
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    return body


RAISED: list[tuple[Exception, int, str, bool, str | None]] = [
    (UnauthenticatedError("Sign in."), 401, "unauthenticated", False, None),
    (DeniedError("No."), 403, "forbidden", False, None),
    (NotFoundError(), 404, "not_found", False, None),
    (ConflictError("Busy.", code="chat_busy"), 409, "chat_busy", False, None),
    (PreconditionError("Changed."), 412, "stale_file", False, None),
    (TooLargeError("Big."), 413, "too_large", False, None),
    (BadPathError("Out."), 422, "bad_path", False, None),
    (ThrottledError("Slow.", retry_after=7), 429, "too_many_requests", True, "7"),
    (UnavailableError("Away.", retry_after=3), 503, "unavailable", True, "3"),
    (RuntimeUnavailableError("Engine away."), 503, "runtime_unavailable", True, "2"),
    (NotRunningError("Start it first."), 409, "not_running", False, None),
    (ContainerMissingError("Start it first."), 409, "not_running", False, None),
    (RPCError("gone", RPCStatusCode.UNAVAILABLE, b""), 503, "unavailable", True, "2"),
]


async def test_domain_errors_and_faults_have_their_status(app: FastAPI, client: httpx.AsyncClient) -> None:
    @app.get("/raise/{number}")
    async def fail(number: int) -> None:
        raise RAISED[number][0]

    for number, (error, status, code, retryable, retry_after) in enumerate(RAISED):
        answer = await client.get(f"/raise/{number}")
        body = problem(answer, status, code)
        assert set(body) == MEMBERS
        assert body["retryable"] is retryable
        assert answer.headers.get("retry-after") == retry_after
        if isinstance(error, StudioError):
            assert body["detail"] == error.detail


async def test_unknown_routes_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    missing = problem(await client.get("/api/nothing"), 404, "not_found")
    assert missing["detail"] == NotFoundError().detail
    answer = await client.put("/api/users/me")
    problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


async def test_validation_says_where(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/auth/register", json={"email": "x", "password": "12345678", "odd": 1})
    body = problem(answer, 422, "validation_failed")
    errors = body["errors"]
    assert isinstance(errors, list)
    assert [error["loc"] for error in errors] == [["body", "email"], ["body", "odd"]]
    assert all(set(error) == {"loc", "msg"} for error in errors)
    assert "12345678" not in answer.text


BROKEN = [b"{", b"[" * 100_000, b'"\xff"', b"", b"null", b"NaN", b'{"\\ud800": "\\ud800"}']


@pytest.mark.parametrize("content", BROKEN)
async def test_broken_json_is_a_problem(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post("/api/auth/register", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


class TestUnforeseen:
    @pytest.fixture
    def app(self, app: FastAPI) -> FastAPI:
        @app.get("/unforeseen")
        async def fail() -> None:
            raise ValueError("the inside of the house")

        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.sleep(0)
            raise ValueError("the inside of the house")

        @app.get("/cut")
        async def cut() -> StreamingResponse:
            return StreamingResponse(pieces())

        return app

    async def test_a_500_names_an_incident_that_the_log_has(self, client: httpx.AsyncClient) -> None:
        with capture_logs(processors=[structlog.processors.format_exc_info]) as log:
            answer = await client.get("/unforeseen")
        body = problem(answer, 500, "internal_error")
        assert "inside" not in answer.text
        assert "x-request-id" in answer.headers
        (entry,) = [entry for entry in log if entry["event"] == "incident"]
        assert entry["incident"] == body["incident"]
        assert "the inside of the house" in entry["exception"]

    async def test_half_an_answer_is_cut_not_ended(self, client: httpx.AsyncClient) -> None:
        with capture_logs() as log, pytest.raises(httpx.RemoteProtocolError):
            await client.get("/cut")
        assert [entry["event"] for entry in log if entry["log_level"] == "error"] == ["incident"]


class TestWebSockets:
    @pytest.fixture
    def app(self, app: FastAPI) -> FastAPI:
        @app.websocket("/ws")
        async def echo(websocket: WebSocket, user: StreamUser) -> None:
            await websocket.accept()
            await websocket.send_text(str(user.user_id))
            await websocket.receive_text()
            raise ConflictError("Busy.", code="chat_busy")

        return app

    async def test_a_refused_handshake_is_a_problem(self, address: str) -> None:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws{address.removeprefix('http')}/ws?ticket=nothing"):
                pass
        assert refused.value.response.status_code == 401
        assert b'"code": "unauthenticated"' in (refused.value.response.body or b"")
        assert "x-request-id" in refused.value.response.headers

    async def test_a_ticket_opens_once_and_an_error_closes_with_its_code(
        self, address: str, client: httpx.AsyncClient, account: Account
    ) -> None:
        ticket = (await client.post("/api/auth/ticket", json={}, headers=account.headers)).json()["ticket"]
        url = f"ws{address.removeprefix('http')}/ws?ticket={ticket}"
        async with connect(url) as socket:
            assert await socket.recv() == str(account.user_id)
            await socket.send("go")
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4409, "chat_busy")
        with pytest.raises(InvalidStatus):
            async with connect(url):
                pass

    async def test_an_api_key_needs_write_for_a_websocket(
        self, address: str, client: httpx.AsyncClient, account: Account
    ) -> None:
        made = await client.post(
            "/api/users/me/api-keys", json={"name": "k", "scopes": ["read"]}, headers=account.headers
        )
        headers = {"Authorization": f"Bearer {made.json()['key']}"}
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws{address.removeprefix('http')}/ws", additional_headers=headers):
                pass
        assert refused.value.response.status_code == 403
        ticket = (await client.post("/api/auth/ticket", json={}, headers=headers)).json()["ticket"]
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws{address.removeprefix('http')}/ws?ticket={ticket}"):
                pass
        assert refused.value.response.status_code == 403
