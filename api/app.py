"""The application: services, routers and what wraps them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import docs
from api.admin import router as admin
from api.agent import router as agent
from api.auth import router as auth
from api.auth.dependencies import AuthTools
from api.chats import router as chats
from api.consoles import router as consoles
from api.dev_servers import router as dev_servers
from api.environment import router as environment
from api.errors import install_error_handlers
from api.events import router as events
from api.files import router as files
from api.health import router as health
from api.idempotency import Idempotency
from api.metrics import Metrics
from api.middleware import (
    CORS_EXPOSED_HEADERS,
    CORS_METHODS,
    CORS_REQUEST_HEADERS,
    BodyLimit,
    ErrorBoundary,
    RequestScope,
    TrailingSlash,
)
from api.models import router as models
from api.openai import router as openai
from api.openai.errors import OpenAIErrors
from api.openapi import install_openapi
from api.operations import router as operations
from api.preview import router as preview
from api.preview.gate import PreviewGate
from api.projects import router as projects
from api.services import ApiConfig, Services
from api.templates import router as templates
from api.ui_messages import router as ui_messages
from api.usage import router as usage
from api.users import router as users

ROUTERS: tuple[APIRouter, ...] = (
    projects.router,
    dev_servers.router,
    preview.router,
    files.router,
    events.router,
    agent.router,
    chats.router,
    ui_messages.router,
    consoles.router,
    environment.router,
    operations.router,
    auth.router,
    users.router,
    templates.router,
    models.router,
    usage.router,
    openai.router,
    health.router,
    admin.router,
    docs.router,
)
"""Every router, what is asked most first: matching a path costs 3 µs of CPU for each route before its own.

Paths are written without a trailing slash; requests with one find them too.
"""

_DESCRIPTION = """\
A dev server, files, chat and a coding agent for every project of every user.

Errors are `application/problem+json` with a stable `code`. Lists take `?limit=` and `?cursor=`. Sign in with
`POST /api/auth/login`, then send `Authorization: Bearer …`.
"""


def create_app(open_services: Callable[[], AbstractAsyncContextManager[Services]], config: ApiConfig) -> FastAPI:
    """Build the application. `open_services` is entered when the server starts and left when it stops.

    Serve it with `access_log=False`: uvicorn's access log has query strings, and with them tickets.
    """
    if "*" in config.cors_origins:
        raise ValueError("CORS origins are named one by one: `*` would let any site act for a signed-in user")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services() as services:
            app.state.services = services
            app.state.auth = AuthTools(services)
            app.state.preview_gate = PreviewGate(services)
            yield
            await app.state.preview_gate.close()

    metrics = Metrics()
    app = FastAPI(
        title="Studio",
        version="0.1.0",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Ours are in api/log.py and api/metrics.py; looking for OpenTelemetry's costs each request 10 µs of CPU.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.metrics = metrics
    for router in ROUTERS:
        app.include_router(router)
    install_error_handlers(app)
    install_openapi(app)
    # The last one added is the outermost.
    app.add_middleware(Idempotency)
    app.add_middleware(TrailingSlash)
    app.add_middleware(BodyLimit)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins,
        allow_credentials=True,
        allow_methods=CORS_METHODS,
        allow_headers=CORS_REQUEST_HEADERS,
        expose_headers=CORS_EXPOSED_HEADERS,
        max_age=600,
    )
    app.add_middleware(RequestScope, https=config.public_url.startswith("https:"), observe=metrics.observe)
    return app
