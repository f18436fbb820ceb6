"""What the routes stand on, given by the composition root (`workers/api.py`); no route builds any of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, cast

from fastapi import Depends
from fastapi.requests import HTTPConnection

from activities.ports import ChatCompletions, FileStore, LanguageModel, Runtime, Template
from api.temporal import TemporalGateway
from storage.engine import Database
from storage.event_log import EventReader
from storage.secret_box import SecretBox


@dataclass(frozen=True)
class ApiConfig:
    """Settings of this room. Durations are seconds, sizes bytes.

    `user_monthly_budget_usd`: of users without a budget of their own; None: unbounded.
    `users_have_model_keys`: at a proxy, each their own; else all calls are made with the service's key.
    `public_url`: where browsers reach the API, e.g. `http://localhost:8000`; `preview_port` None: the scheme's own.
    """

    secret_key: str
    public_url: str
    preview_domain: str
    preview_port: int | None
    preview_scheme: str = "http"
    cors_origins: tuple[str, ...] = ()
    project_limit: int = 100
    access_token_s: int = 15 * 60
    refresh_token_s: int = 14 * 24 * 3600
    idle_timeout_s: int = 30 * 60
    start_timeout_s: int = 10 * 60
    idle_grace_s: int = 60
    model_max_output_tokens: int = 8192
    user_monthly_budget_usd: Decimal | None = None
    users_have_model_keys: bool = False


@dataclass(frozen=True)
class Services:
    """Everything with a connection, opened and closed by the composition root."""

    config: ApiConfig
    database: Database
    events: EventReader
    temporal: TemporalGateway
    files: FileStore
    templates: Mapping[str, Template]
    runtime: Runtime
    secrets: SecretBox
    models: LanguageModel
    completions: ChatCompletions


def get_services(connection: HTTPConnection) -> Services:
    """The services of this application."""
    return cast("Services", connection.app.state.services)


async def _services(connection: HTTPConnection) -> Services:
    return get_services(connection)  # a coroutine, because FastAPI runs any other dependency in a thread


ServicesDep = Annotated[Services, Depends(_services)]
