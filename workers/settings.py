"""Every setting, from the environment and from `.env` in the working directory; `.env.example` documents each."""

import ipaddress
import logging
import re
import sys
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIN_SECRET_BYTES = 32

Port = Annotated[int, Field(ge=1, le=65535)]
WordList = Annotated[tuple[str, ...], NoDecode]

_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_INSTANCE = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_WEAK_KEY_HINT = f'`python -c "import secrets; print(secrets.token_urlsafe({MIN_SECRET_BYTES + 16}))"` makes one'


class DeploymentMode(StrEnum):
    """Where dev servers run."""

    DOCKER = "docker"
    KUBERNETES = "kubernetes"
    LOCAL = "local"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """As the standard library counts."""
        return logging.getLevelNamesMapping()[self.upper()]


class Settings(BaseSettings):
    """All settings of all processes. Names in the environment are these in capitals; an empty value means unset.

    Durations are seconds. Paths are relative to the working directory.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    # What a process can't run without; `make up` gives each of them by itself.
    secret_key: SecretStr | None = None
    secret_key_previous: WordList = ()
    database_url: SecretStr | None = None
    temporal_address: str | None = None
    temporal_namespace: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")
    temporal_tls: bool = False
    temporal_api_key: SecretStr | None = None

    # Where things are.
    deployment_mode: DeploymentMode | None = None
    data_dir: Path = Path(".data")
    projects_root: Path | None = None
    instance: str | None = Field(None, pattern=_INSTANCE)
    first_user_id: int | None = Field(None, ge=1)
    ready_file: Path | None = None
    api_host: str = "127.0.0.1"
    api_port: Port = 8000
    preview_port: Port = 8080
    temporal_port: Port = 7233
    temporal_ui_port: Port = 8233
    public_url: str | None = None
    preview_domain: str = "localhost"
    preview_scheme: str = Field("http", pattern="^https?$")
    cors_origins: WordList = ()
    trusted_proxies: WordList = ()

    # Language models.
    litellm: bool = False
    litellm_api_base: str | None = None
    litellm_master_key: SecretStr | None = None
    openai_api_base: str | None = None
    openai_api_key: SecretStr | None = None
    openai_model: str | None = None
    openai_input_price: Decimal = Field(Decimal(0), ge=0)
    openai_output_price: Decimal = Field(Decimal(0), ge=0)
    model_max_output_tokens: int = Field(8192, ge=1)
    user_monthly_budget_usd: Decimal | None = Field(None, ge=0)

    approval_timeout_s: int = Field(7 * 24 * 3600, ge=1)

    # Dev servers.
    devserver_image: str = "studio-devserver:latest"
    docker_host: str = "unix:///var/run/docker.sock"
    engine_projects_root: str | None = None
    engine_relay: Path | None = None
    network_pool: str = "10.202.0.0/16"
    egress_allow: WordList = ()
    project_disk_mb: int = Field(2048, ge=1)
    devserver_memory_mb: int = Field(1024, ge=128)
    devserver_cpus: float = Field(1.0, gt=0)
    devserver_pids: int = Field(256, ge=32)
    start_timeout_s: int = Field(600, ge=1)
    idle_timeout_s: int = Field(30 * 60, ge=1)
    idle_grace_s: int = Field(60, ge=0)

    # The worker's releases and its end.
    worker_deployment: str = Field("studio", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    worker_build_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,128}$")
    worker_drain_s: int = Field(3600, ge=0)
    worker_grace_s: int = Field(5, ge=1)

    # Dev servers in a cluster.
    kubeconfig: Path | None = None
    kubernetes_namespace: str = Field("studio-projects", pattern=_DNS_LABEL)
    kubernetes_volume_claim: str = Field("studio-projects", pattern=_DNS_LABEL)
    ingress_class: str = Field("traefik", pattern=_DNS_LABEL)
    preview_gateway: Literal["traefik", "nginx"] = "traefik"
    preview_middlewares: WordList = ()
    preview_auth_url: str | None = None
    preview_tls_secret: str | None = Field(None, pattern=_DNS_LABEL)
    preview_cert_issuer: str | None = Field(None, pattern=_DNS_LABEL)
    runtime_class: str | None = Field(None, pattern=_DNS_LABEL)
    node_selector: WordList = ()

    # Mending.
    reconcile_interval_s: int = Field(60, ge=1)
    reconcile_grace_s: int = Field(60, ge=1)

    # Bounds and logs.
    project_limit: int = Field(100, ge=1)
    log_level: LogLevel = LogLevel.INFO

    @field_validator(
        "secret_key_previous",
        "cors_origins",
        "trusted_proxies",
        "egress_allow",
        "preview_middlewares",
        "node_selector",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:  # noqa: ANN401 -- a validator sees what the environment or a caller gives
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://[^/*\s]+", origin):
                raise ValueError(f"`{origin}` isn't an origin: scheme and host, no path, no `*`")
        return value

    @field_validator("preview_domain")
    @classmethod
    def _check_domain(cls, value: str) -> str:
        if not _HOST_NAME.fullmatch(value.lower()):
            raise ValueError("it must be a host name without scheme and port")
        return value.lower()

    @field_validator("network_pool", "egress_allow")
    @classmethod
    def _check_networks(cls, value: Any) -> Any:  # noqa: ANN401 -- one network, or several
        for network in (value,) if isinstance(value, str) else value:
            ipaddress.IPv4Network(network)
        return value

    @field_validator("node_selector")
    @classmethod
    def _check_selector(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            if not re.fullmatch(r"[^=\s]+=[^=\s]*", pair):
                raise ValueError(f"`{pair}` isn't `label=value`")
        return value

    @field_validator("api_host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        return str(ipaddress.ip_address(value))

    @field_validator("secret_key")
    @classmethod
    def _check_secret_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"it is shorter than {MIN_SECRET_BYTES} bytes; {_WEAK_KEY_HINT}")
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"postgres(ql)?(\+asyncpg)?://", value.get_secret_value()):
            raise ValueError("it must begin with `postgresql://`")
        return value

    @field_validator("temporal_address")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^\s:/]+:[0-9]{1,5}", value):
            raise ValueError("it must be `host:port`")
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.litellm_api_base and self.litellm_master_key is None:
            raise ValueError("LITELLM_API_BASE is set, but LITELLM_MASTER_KEY isn't; set both or neither")
        if self.preview_gateway == "nginx" and not self.preview_auth_url:
            raise ValueError("PREVIEW_GATEWAY is nginx, but PREVIEW_AUTH_URL doesn't say where it asks who gets in")
        return self

    @property
    def files_root(self) -> Path:
        """Absolute `PROJECTS_ROOT`; `projects` in the data folder when it isn't set."""
        return (self.projects_root or self.data_dir / "projects").absolute()

    @property
    def temporal_encrypted(self) -> bool:
        """Whether Temporal is spoken to over TLS; a key never travels without."""
        return self.temporal_tls or self.temporal_api_key is not None

    @property
    def users_have_model_keys(self) -> bool:
        """Whether there is a proxy that keeps a key for each user."""
        return bool(self.litellm_api_base and self.litellm_master_key)

    @property
    def api_url(self) -> str:
        """Where browsers reach the API, without a trailing slash."""
        return (self.public_url or f"http://localhost:{self.api_port}").rstrip("/")

    @property
    def shown_preview_port(self) -> int | None:
        """The port in preview addresses; None when it is the scheme's own."""
        own = {"http": 80, "https": 443}[self.preview_scheme]
        return None if self.preview_port == own else self.preview_port


class ServiceSettings(Settings):
    """Settings of one process of the service: nothing that it needs may be missing or weak."""

    secret_key: SecretStr
    database_url: SecretStr
    temporal_address: str
    deployment_mode: DeploymentMode
    instance: str = Field("studio", pattern=_INSTANCE)


EXAMPLES = {
    "SECRET_KEY": f"a random text of at least {MIN_SECRET_BYTES} bytes ({_WEAK_KEY_HINT})",
    "DATABASE_URL": "postgresql://studio:password@localhost:5432/studio",
    "TEMPORAL_ADDRESS": "localhost:7233",
    "TEMPORAL_NAMESPACE": "default",
    "DEPLOYMENT_MODE": "docker, kubernetes or local",
    "PREVIEW_DOMAIN": "preview.example.com",
    "CORS_ORIGINS": "https://app.example.com,https://admin.example.com",
    "API_HOST": "127.0.0.1",
    "EGRESS_ALLOW": "10.0.5.0/24",
    "INSTANCE": "studio",
    "KUBECONFIG": "/home/me/.kube/config",
    "NODE_SELECTOR": "pool=projects,arch=amd64",
    "LOG_LEVEL": "info",
    "PREVIEW_SCHEME": "https",
}
"""What a right value looks like; settings that aren't here show their default."""


def explain(error: ValidationError, model: type[Settings]) -> str:
    """One line for each bad setting: its name, what is wrong, and a right value. Never the value: it may be secret."""
    return "\n".join(
        _explain_one(str(item["loc"][0]) if item["loc"] else "", item["msg"], model) for item in error.errors()
    )


def _explain_one(field: str, message: str, model: type[Settings]) -> str:
    reason = message.removeprefix("Value error, ")
    if not field:
        return f"Settings: {reason}."
    if reason == "Field required":
        reason = "it isn't set"
    name = field.upper()
    example = EXAMPLES.get(name, str(model.model_fields[field].default))
    return f"{name}: {reason[:1].lower()}{reason[1:]}. A right value: {example}"


def load_settings() -> Settings:
    """The settings, or an end of the process that names each bad one."""
    return _load(Settings)


def load_service_settings() -> ServiceSettings:
    """The settings of one process of the service, or an end of it that names what is missing, weak or wrong."""
    return _load(ServiceSettings)


_Model = TypeVar("_Model", bound=Settings)


def _load(model: type[_Model]) -> _Model:
    try:
        return model()
    except ValidationError as error:
        sys.exit(explain(error, model))
