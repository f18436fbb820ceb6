"""The API on a real uvicorn over a real Postgres. Temporal and the engine are away unless a test brings them."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
import structlog
from fastapi import FastAPI

from activities.files.store import DiskFileStore
from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.language_models.passthrough import NoChatCompletions
from activities.ports import ChatCompletions, FileStore, LanguageModel, Runtime, Template
from api.app import create_app
from api.log import redact
from api.services import ApiConfig, Services
from api.temporal import TemporalGateway
from storage.engine import Database
from storage.event_listener import EventListener
from storage.event_log import EventReader
from storage.secret_box import SecretBox
from tests.api.stand import AbsentRuntime, Account, browsing, free_port, register, serving
from tests.api.temporal_server import TemporalServer
from workers.templates import load_templates

SECRET_KEY = "a secret of the tests, at least 32 bytes long"


@pytest.fixture(autouse=True)
def plain_log() -> None:
    """One line an event; structlog's default draws every frame's locals, for seconds."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(),
        ]
    )


@pytest.fixture
def config() -> ApiConfig:
    return ApiConfig(
        secret_key=SECRET_KEY,
        public_url="http://localhost:8000",
        preview_domain="localhost",
        preview_port=8080,
        cors_origins=("https://console.example.com",),
    )


@pytest.fixture
def runtime() -> Runtime:
    return cast("Runtime", AbsentRuntime())


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return DiskFileStore(tmp_path / "projects", None)


@pytest.fixture
def templates() -> Mapping[str, Template]:
    return load_templates()


@pytest.fixture
def temporal() -> TemporalGateway:
    return TemporalGateway(f"127.0.0.1:{free_port()}", "default")


@pytest.fixture(scope="session")
def temporal_server() -> Iterator[TemporalServer]:
    """One for all tests that need it, as their `temporal`; it has no workers."""
    server = TemporalServer()
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture
def models() -> LanguageModel:
    """A server that doesn't answer."""
    return OpenAICompatibleModel(ModelServer(f"http://127.0.0.1:{free_port()}/v1", default_model="gone"))


@pytest.fixture
def completions() -> ChatCompletions:
    return NoChatCompletions()


@pytest.fixture
async def services(  # noqa: PLR0913, PLR0917 -- a fixture's arguments are given by name
    config: ApiConfig,
    database: Database,
    database_url: str,
    temporal: TemporalGateway,
    files: FileStore,
    templates: Mapping[str, Template],
    runtime: Runtime,
    models: LanguageModel,
    completions: ChatCompletions,
) -> AsyncIterator[Services]:
    listener = EventListener(database_url)
    yield Services(
        config=config,
        database=database,
        events=EventReader(database, listener),
        temporal=temporal,
        files=files,
        templates=templates,
        runtime=runtime,
        secrets=SecretBox(config.secret_key),
        models=models,
        completions=completions,
    )
    await completions.close()
    await models.close()
    await listener.close()


@pytest.fixture
def app(services: Services, config: ApiConfig) -> FastAPI:
    """The application; a test may add a route of its own before it asks for `client`."""

    @asynccontextmanager
    async def open_services() -> AsyncIterator[Services]:
        yield services

    return create_app(open_services, config)


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[str]:
    async with serving(app) as base_url:
        yield base_url


@pytest.fixture
async def client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with browsing(address) as browser:
        yield browser


@pytest.fixture
async def account(client: httpx.AsyncClient) -> Account:
    return await register(client)
