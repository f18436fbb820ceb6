"""The API's process: builds what the routes stand on and serves them. `python -m workers.api`."""

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from activities.language_models.open import open_chat_completions
from api.app import create_app as create_application
from api.log import configure_logging
from api.services import ApiConfig, Services
from api.temporal import TemporalGateway
from storage.event_listener import EventListener
from storage.event_log import EventReader
from workers.secrecy import keep_to_itself
from workers.settings import ServiceSettings, load_service_settings
from workers.templates import load_templates
from workers.wiring import model_settings, open_foundation, revealed

_GRACE_S = 5
"""Requests in flight have this long after SIGTERM; streams are told to end and resume elsewhere."""


def api_config(settings: ServiceSettings) -> ApiConfig:
    """The API's share of the settings."""
    return ApiConfig(
        secret_key=settings.secret_key.get_secret_value(),
        public_url=settings.api_url,
        preview_domain=settings.preview_domain,
        preview_port=settings.shown_preview_port,
        preview_scheme=settings.preview_scheme,
        cors_origins=settings.cors_origins,
        project_limit=settings.project_limit,
        idle_timeout_s=settings.idle_timeout_s,
        start_timeout_s=settings.start_timeout_s,
        idle_grace_s=settings.idle_grace_s,
        model_max_output_tokens=settings.model_max_output_tokens,
        user_monthly_budget_usd=settings.user_monthly_budget_usd,
        users_have_model_keys=settings.users_have_model_keys,
    )


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """The application with all its connections; also a factory for `uvicorn --factory workers.api:create_app`."""
    chosen = settings or load_service_settings()
    config = api_config(chosen)

    @asynccontextmanager
    async def open_services() -> AsyncIterator[Services]:
        async with (
            open_foundation(chosen) as foundation,
            open_chat_completions(model_settings(chosen)) as completions,
        ):
            listener = EventListener(chosen.database_url.get_secret_value())
            try:
                yield Services(
                    config=config,
                    database=foundation.database,
                    events=EventReader(foundation.database, listener),
                    temporal=TemporalGateway(
                        chosen.temporal_address,
                        chosen.temporal_namespace,
                        tls=chosen.temporal_encrypted,
                        api_key=revealed(chosen.temporal_api_key),
                    ),
                    files=foundation.files,
                    templates=load_templates(),
                    runtime=foundation.runtime,
                    secrets=foundation.secrets,
                    models=foundation.models,
                    completions=completions,
                )
            finally:
                await listener.close()

    return create_application(open_services, config)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    keep_to_itself()
    settings = load_service_settings()
    configure_logging(json_lines=not sys.stderr.isatty(), level=settings.log_level.number)
    app = create_app(settings)
    gc.freeze()  # modules stay: going through them all, again and again, would halt every stream
    uvicorn.run(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,  # ours; and no access log, since it would hold query strings and with them tickets
        access_log=False,
        # Nobody else may choose their own address: the request log and the throttle rely on it.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        ws_max_size=1024 * 1024,
    )


if __name__ == "__main__":
    main()
