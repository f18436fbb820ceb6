"""What API and worker both stand on, built from the settings in one place."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from activities.files.store import DiskFileStore
from activities.language_models.open import ModelSettings, open_language_model
from activities.ports import FileStore, LanguageModel, ModelKeys, ResourceLimits, Runtime
from activities.runtimes.open import KubernetesOptions, RuntimeMode, RuntimeSettings, open_runtime
from api.preview.gate_key import gate_key
from storage.engine import Database
from storage.migrate import migrate
from storage.secret_box import SecretBox
from workers.numbering import begin_user_ids
from workers.settings import ServiceSettings

CONTAINER_OWNER = (1000, 1000)
"""User and group that dev servers run as when this process is root."""
_POSTGRES_WAIT_S = 120.0
PRICED_TOKENS = 1_000_000
"""Prices are given for so many."""


@dataclass(frozen=True)
class Foundation:
    """Database (migrated), files, runtime, secrets and models; closed by the one who opened them.

    `model_keys`: None where there is no proxy that keeps a key for each user.
    """

    database: Database
    files: FileStore
    runtime: Runtime
    secrets: SecretBox
    models: LanguageModel
    model_keys: ModelKeys | None


@asynccontextmanager
async def open_foundation(settings: ServiceSettings) -> AsyncIterator[Foundation]:
    """Wait for Postgres, bring it to today's tables, open the rest. Several processes may do so at once.

    Raises `UnavailableError` when Postgres didn't answer for two minutes.
    """
    url = settings.database_url.get_secret_value()
    await migrate(url, wait_s=_POSTGRES_WAIT_S)
    database = Database(url)
    try:
        if settings.first_user_id is not None:
            await begin_user_ids(database, settings.first_user_id)
        async with (
            open_runtime(runtime_settings(settings)) as runtime,
            open_language_model(model_settings(settings)) as (models, model_keys),
        ):
            yield Foundation(
                database=database,
                files=DiskFileStore(settings.files_root, _owner(), project_disk_mb=settings.project_disk_mb),
                runtime=runtime,
                secrets=SecretBox(settings.secret_key.get_secret_value(), settings.secret_key_previous),
                models=models,
                model_keys=model_keys,
            )
    finally:
        await database.close()


def runtime_settings(settings: ServiceSettings) -> RuntimeSettings:
    """What the driver of the chosen mode is told."""
    return RuntimeSettings(
        mode=RuntimeMode(settings.deployment_mode),
        instance=settings.instance,
        data_dir=settings.data_dir.absolute(),
        projects_root=settings.files_root,
        image=settings.devserver_image,
        preview_domain=settings.preview_domain,
        network_pool=settings.network_pool,
        engine_url=settings.docker_host,
        engine_projects_root=settings.engine_projects_root,
        egress_allow=settings.egress_allow,
        toolchain=settings.data_dir.absolute() / "toolchain",
        kubeconfig=settings.kubeconfig,
        kubernetes=KubernetesOptions(
            namespace=settings.kubernetes_namespace,
            volume_claim=settings.kubernetes_volume_claim,
            ingress_class=settings.ingress_class,
            gateway=settings.preview_gateway,
            middlewares=settings.preview_middlewares or KubernetesOptions.middlewares,
            auth_url=_auth_url(settings),
            tls_secret=settings.preview_tls_secret,
            cert_issuer=settings.preview_cert_issuer,
            runtime_class=settings.runtime_class,
            node_selector=dict(_pair(entry) for entry in settings.node_selector),
        ),
    )


def _auth_url(settings: ServiceSettings) -> str | None:
    """Where nginx asks who gets in, with the key that the gate knows it by."""
    if settings.preview_auth_url is None:
        return None
    return f"{settings.preview_auth_url}?key={gate_key(SecretBox(settings.secret_key.get_secret_value()))}"


def _pair(entry: str) -> tuple[str, str]:
    label, _, value = entry.partition("=")
    return label, value


def model_settings(settings: ServiceSettings) -> ModelSettings:
    """Where the language models are."""
    return ModelSettings(
        instance=settings.instance,
        litellm_api_base=settings.litellm_api_base,
        litellm_master_key=revealed(settings.litellm_master_key),
        openai_api_base=settings.openai_api_base,
        openai_api_key=revealed(settings.openai_api_key),
        default_model=settings.openai_model,
        input_price=settings.openai_input_price / PRICED_TOKENS,
        output_price=settings.openai_output_price / PRICED_TOKENS,
    )


def revealed(secret: SecretStr | None) -> str | None:
    """What is in it, for the one who needs it."""
    return None if secret is None else secret.get_secret_value()


def _owner() -> tuple[int, int] | None:
    """Whom written files belong to: the user that containers run as, where this process may give files away."""
    return CONTAINER_OWNER if os.geteuid() == 0 else None


def dev_server_limits(settings: ServiceSettings) -> ResourceLimits:
    """Bounds of each dev server's container."""
    return ResourceLimits(
        memory_mb=settings.devserver_memory_mb, cpus=settings.devserver_cpus, pids=settings.devserver_pids
    )
