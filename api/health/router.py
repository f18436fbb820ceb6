"""`/healthz`, `/readyz`, `/metrics`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal, cast

import structlog
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel
from sqlalchemy import text

from api.auth.dependencies import SuperUser
from api.errors import ProblemAnswer, problem_of, problems
from api.metrics import Metrics
from api.services import Services, ServicesDep

router = APIRouter(tags=["health"])

CHECK_TIMEOUT_S = 2.0
_OPTIONAL = frozenset({"models"})
_METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

_log = structlog.get_logger("api.health")


class DependencyState(BaseModel):
    """How one dependency answered. `detail` says what is wrong when it is down."""

    state: Literal["up", "down"]
    latency_ms: float
    detail: str | None = None


class Readiness(BaseModel):
    """Every dependency. `models`, the language models' server, is shown only: all but the assistant works without."""

    status: Literal["ready"] = "ready"
    runtime: str
    dependencies: dict[str, DependencyState]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


async def get_metrics(request: Request) -> Metrics:
    """The application's metrics; a dependency."""
    return cast("Metrics", request.app.state.metrics)


MetricsDep = Annotated[Metrics, Depends(get_metrics)]


@router.get("/healthz")
async def healthz() -> Alive:
    """Whether the process answers; asks nobody else."""
    return Alive()


@router.get("/readyz", response_model=Readiness, responses=problems({503: "not_ready"}))
async def readyz(services: ServicesDep, metrics: MetricsDep) -> Readiness | Response:
    """Whether Postgres, Temporal and the runtime answer; 503 with the same `dependencies` when one doesn't.

    The language models' server is asked, too, and shown.
    """
    states = await check_dependencies(services)
    for name, state in states.items():
        metrics.up.labels(name).set(state.state == "up")
    down = [name for name, state in states.items() if state.state == "down" and name not in _OPTIONAL]
    if not down:
        return Readiness(runtime=services.runtime.name, dependencies=dict(states))
    shown: dict[str, Any] = {name: state.model_dump() for name, state in states.items()}
    return ProblemAnswer(
        503,
        "not_ready",
        f"Not ready: {', '.join(down)} doesn't answer.",
        retryable=True,
        headers={"Retry-After": "2"},
        extra={"runtime": services.runtime.name, "dependencies": shown},
    ).response()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics_text(_user: SuperUser, metrics: MetricsDep) -> Response:
    """Return Prometheus's text format; for superusers, e.g. with an API key with scope `read`."""
    return Response(metrics.render(), headers={"content-type": _METRICS_TEXT})


async def check_dependencies(services: Services) -> Mapping[str, DependencyState]:
    """Ask all of them at once, each for at most `CHECK_TIMEOUT_S`."""
    checks: dict[str, Callable[[], Awaitable[object]]] = {
        "postgres": lambda: _ask_postgres(services),
        "temporal": services.temporal.require,
        "runtime": services.runtime.ready,
        "models": services.models.ready,
    }
    states = await asyncio.gather(*(_check(name, ask) for name, ask in checks.items()))
    return dict(zip(checks, states, strict=True))


async def _ask_postgres(services: Services) -> None:
    async with services.database.reading() as session:
        await session.execute(text("SELECT 1"))


async def _check(name: str, ask: Callable[[], Awaitable[object]]) -> DependencyState:
    began = time.perf_counter()
    detail = None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await ask()
    except TimeoutError:
        detail = f"No answer within {CHECK_TIMEOUT_S:g} s."
    except Exception as error:  # noqa: BLE001 -- whatever went wrong, the answer is "down"
        known = problem_of(error)
        detail = known.detail if known else "It failed; the log has the reason."
        if known is None:
            _log.exception("readiness check failed", dependency=name)
    latency = round((time.perf_counter() - began) * 1000, 1)
    return DependencyState(state="down" if detail else "up", latency_ms=latency, detail=detail)
