import inspect
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import structlog
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.responses import HTMLResponse
from fastapi.security import OAuth2PasswordRequestForm
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from api.app import ROUTERS, create_app
from api.log import REDACTED, configure_logging
from api.middleware import JSON_BODY_LIMIT, ErrorBoundary
from api.services import ApiConfig
from tests.api.stand import PASSWORD, Account

ORIGIN = "https://console.example.com"


@pytest.mark.parametrize("offered", ["a", "A-1" * 21 + "z", "x" * 64])
async def test_a_good_request_id_is_taken_over(client: httpx.AsyncClient, offered: str) -> None:
    answer = await client.get("/healthz", headers={"X-Request-ID": offered})
    assert answer.headers["x-request-id"] == offered


@pytest.mark.parametrize("offered", ["", "x" * 65, "a b", "a_b", "ä", "a;b"])
async def test_a_bad_request_id_is_replaced(client: httpx.AsyncClient, offered: str) -> None:
    answer = await client.get("/healthz", headers=[(b"X-Request-ID", offered.encode("latin-1"))])
    made = answer.headers["x-request-id"]
    assert made != offered
    assert 1 <= len(made) <= 64


async def test_security_headers_are_on_every_answer(client: httpx.AsyncClient) -> None:
    for path, status in {"/healthz": 200, "/api/users/me": 401, "/nothing": 404, "/docs": 200}.items():
        answer = await client.get(path)
        assert answer.status_code == status
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_docs_work_by_themselves_under_their_policy(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert "sandbox" not in page.headers["content-security-policy"]
    assert "://" not in page.text.replace("http://www.w3.org", "")
    for path in ("/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js"):
        assert f'"{path}"' in page.text
        assert (await client.get(path)).status_code == 200


async def test_cors_is_for_named_origins_only(client: httpx.AsyncClient) -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = await client.options(
        "/api/auth/login", headers={**preflight, "Access-Control-Request-Headers": "idempotency-key"}
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    answer = await client.get("/api/users/me", headers={"Origin": ORIGIN})
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert exposed >= {"Location", "ETag", "X-Request-ID", "Retry-After"}
    answer = await client.get("/healthz", headers={"Origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_wildcard_origin_is_refused() -> None:
    config = ApiConfig("x" * 32, "http://localhost:8000", "localhost", None, cors_origins=("*",))
    with pytest.raises(ValueError, match="one by one"):
        create_app(lambda: None, config)  # type: ignore[arg-type, return-value]  # never opened


async def test_a_body_over_the_limit_is_413(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"name": "'
        for _ in range(20):
            yield b"x" * 100_000

    json_type = {"Content-Type": "application/json"}
    announced = await client.post("/api/auth/register", content=b" " * (JSON_BODY_LIMIT + 1), headers=json_type)
    chunked = await client.post("/api/auth/register", content=chunks(), headers=json_type)
    for answer in (announced, chunked):
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert answer.headers["content-type"] == "application/problem+json"
    fits = await client.post("/api/auth/register", content=b" " * JSON_BODY_LIMIT, headers=json_type)
    assert fits.status_code == 422


async def test_a_trailing_slash_is_the_same_path(client: httpx.AsyncClient, account: Account) -> None:
    assert (await client.get("/api/users/me/", headers=account.headers)).status_code == 200
    answer = await client.post("/api/auth/ticket/", json={}, headers=account.headers)
    assert answer.status_code == 200


def test_no_route_ends_with_a_slash(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    assert "/api/auth/login" in paths
    assert [path for path in paths if path.endswith("/")] == []


def test_no_dependency_takes_a_thread() -> None:
    """FastAPI runs a plain function in a thread: two hops a request that wait for each other under load."""

    def in_threads(dependant: Dependant) -> set[str]:
        found = set().union(*(in_threads(inner) for inner in dependant.dependencies))
        call = dependant.call
        asynchronous = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)
        return found if asynchronous else {*found, repr(call)}

    dependants = [getattr(route, "dependant", None) for router in ROUTERS for route in router.routes]
    assert all(isinstance(dependant, Dependant) for dependant in dependants)
    found = set().union(*(in_threads(dependant) for dependant in dependants if dependant is not None))
    assert found == {repr(OAuth2PasswordRequestForm)}  # FastAPI's own; beside argon2 it is nothing


async def test_the_log_has_the_request_and_no_secret(client: httpx.AsyncClient, account: Account) -> None:
    with capture_logs() as log:
        await client.get(
            "/api/users/me", params={"ticket": "hush-hush"}, headers={**account.headers, "X-Request-ID": "abc-1"}
        )
        await client.post("/api/auth/login", data={"username": account.email, "password": PASSWORD})
    entry = next(entry for entry in log if entry["event"] == "request")
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/api/users/me", 200)
    assert entry["user_id"] == account.user_id
    assert entry["duration_ms"] > 0
    text = repr(log)
    for secret in ("hush-hush", account.access_token, account.refresh_token, PASSWORD, "Bearer"):
        assert secret not in text


async def test_html_of_a_user_can_run_nothing_here(app: FastAPI, client: httpx.AsyncClient) -> None:
    @app.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse("<script>alert(1)</script>")

    assert "sandbox" in (await client.get("/page")).headers["content-security-policy"]


@pytest.fixture
def log_stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    stream = io.StringIO()
    configure_logging(stream=stream)
    yield stream
    root.handlers[:], root.level = before[0], before[1]
    structlog.reset_defaults()


def test_secrets_are_taken_out_of_the_log(log_stream: io.StringIO) -> None:
    log = structlog.get_logger("test")
    key, jwt = "stu_" + "k" * 43, "eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl"
    log.debug("below the level")
    log.info("hello", password="p1", headers={"Authorization": "Bearer b1"}, path="/x?ticket=t1&a=1", user_id=7)
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "127.0.0.1", "/ws?since=1&ticket=t2")
    try:
        raise ValueError(f"{key} {jwt} postgresql://studio:db1@host/x")  # noqa: TRY301 -- its text is what is tested
    except ValueError:
        log.exception("failed")
    text = log_stream.getvalue()
    for secret in ("p1", "b1", "t1", "t2", key, jwt, "db1"):
        assert secret not in text, secret
    first, second, third = (json.loads(line) for line in text.splitlines())
    assert (first["event"], first["user_id"], first["password"]) == ("hello", 7, REDACTED)
    assert (first["logger"], first["level"], second["logger"]) == ("test", "info", "uvicorn.error")
    assert first["path"] == f"/x?ticket={REDACTED}&a=1"
    assert "since=1" in second["event"]
    assert "Traceback" in third["exception"]
    assert logging.getLogger("uvicorn.access").propagate is False


@pytest.mark.parametrize(
    "lost", [OSError("gone"), RuntimeError("Expected 'websocket.accept' but got 'websocket.send'")]
)
async def test_a_client_that_leaves_while_its_websocket_opens_is_no_incident(lost: Exception) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Message) -> None:
        raise lost

    async def receive() -> Message:
        raise AssertionError

    with capture_logs() as logged:
        await ErrorBoundary(app)({"type": "websocket", "path": "/"}, receive, send)
    assert logged == []
