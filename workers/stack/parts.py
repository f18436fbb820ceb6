"""What each part of the stack is: its command, its environment, and when it is ready."""

import asyncio
import signal
import sys
from pathlib import Path

from api.preview.routing import MIDDLEWARES
from workers.settings import DeploymentMode, Settings
from workers.stack.cluster import Cluster
from workers.stack.console import say
from workers.stack.data_directory import DataDirectory, StackError
from workers.stack.litellm import Proxy
from workers.stack.models import choose_models
from workers.stack.part import Part, PartSpec, always
from workers.stack.postgres import EmbeddedPostgres
from workers.stack.privileges import die_with_parent
from workers.stack.readiness import accepts, answers_ok, is_noted
from workers.stack.traefik import write_configuration

_DEFAULT_PORTS = {"API_PORT": 8000, "PREVIEW_PORT": 8080, "TEMPORAL_PORT": 7233, "TEMPORAL_UI_PORT": 8233}
_TEMPORAL_FLAGS = (
    # The development server's defaults make every dispatch wait 50 ms; these cost a little idle CPU.
    "--sqlite-pragma", "journal_mode=WAL",
    "--sqlite-pragma", "synchronous=NORMAL",
    "--dynamic-config-value", "history.transferProcessorMaxPollRPS=2000",
    "--dynamic-config-value", "history.visibilityProcessorMaxPollRPS=2000",
    "--dynamic-config-value", "history.timerProcessorMaxPollRPS=2000",
    # An activity that the worker itself can take goes back with the answer that asked for it: a dispatch less.
    "--dynamic-config-value", "system.enableActivityEagerExecution=true",
    "--search-attribute", "UserId=Keyword",
    "--search-attribute", "ProjectId=Keyword",
    "--search-attribute", "TaskState=Keyword",
)  # fmt: skip


def ports(settings: Settings) -> dict[str, int]:
    """The ports that the stack will listen on, by the variable that changes each."""
    wanted = {"API_PORT": settings.api_port, "PREVIEW_PORT": settings.preview_port}
    if settings.temporal_address is None:
        wanted |= {"TEMPORAL_PORT": settings.temporal_port, "TEMPORAL_UI_PORT": settings.temporal_ui_port}
    return wanted


class StackParts:
    """The parts of one stack. `postgres`, `temporal`, `model`: None where the settings name servers of one's own;
    `litellm`: None unless they ask for it. `models_shown`: what answers, for the person at the terminal.
    """

    def __init__(
        self, settings: Settings, data: DataDirectory, mode: DeploymentMode, cluster: Cluster | None = None
    ) -> None:
        self._settings = settings
        self._data = data
        self._mode = mode
        self._kubernetes = cluster
        self._secret_key = settings.secret_key.get_secret_value() if settings.secret_key else data.secret_key()
        self._instance = settings.instance or data.instance
        self._cluster = EmbeddedPostgres(data.root / "postgres")
        self.postgres = None if settings.database_url else self._part(self._postgres())
        self.temporal = None if settings.temporal_address else self._part(self._temporal())
        models = choose_models(settings, data)
        self.model = self._part(models.part) if models.part else None
        proxy = None
        if settings.litellm:
            proxy = Proxy(settings, data, models, secret_key=self._secret_key, database_url=self._database_url)
        self.litellm = self._part(proxy.part) if proxy else None
        self.models_shown = proxy.shown if proxy else models.shown
        self._models_environment = {**models.environment, **(proxy.environment if proxy else {})}
        self.traefik = self._part(self._traefik())
        self.worker = self._part(self._worker())
        self.api = self._part(self._api())

    def all(self) -> list[Part]:
        """Every part that this stack has."""
        parts = (self.postgres, self.temporal, self.model, self.litellm, self.traefik, self.worker, self.api)
        return [part for part in parts if part]

    def environment(self) -> dict[str, str]:
        """What API and worker are told, once the database's address is known."""
        settings, data = self._settings, self._data
        return {
            "SECRET_KEY": self._secret_key,
            "DATABASE_URL": self._database_url(),
            "TEMPORAL_ADDRESS": settings.temporal_address or f"127.0.0.1:{settings.temporal_port}",
            "DEPLOYMENT_MODE": self._mode,
            "DATA_DIR": str(data.root),
            "PROJECTS_ROOT": str(settings.files_root),
            "INSTANCE": self._instance,
            "FIRST_USER_ID": str(self._first_user_id()),
            **self._models_environment,
            **self._kubernetes_environment(),
        }

    def _kubernetes_environment(self) -> dict[str, str]:
        """Where the cluster is, and what its Ingresses ask of the stack's own Traefik."""
        if self._kubernetes is None:
            return {}
        return {
            "KUBECONFIG": str(self._kubernetes.kubeconfig),
            "PREVIEW_GATEWAY": "traefik",
            "PREVIEW_MIDDLEWARES": ",".join(MIDDLEWARES),
        }

    def _database_url(self) -> str:
        given = self._settings.database_url
        return given.get_secret_value() if given else self._cluster.url()

    def _first_user_id(self) -> int:
        """A stack on other ports than the default ones may run beside another, on one engine and one host name."""
        beside_another = any(number != _DEFAULT_PORTS[name] for name, number in ports(self._settings).items())
        if self._settings.first_user_id is None and beside_another:
            return self._data.first_user_id
        return self._settings.first_user_id or 1

    def _part(self, spec: PartSpec) -> Part:
        return Part(spec, self._data, say)

    def _postgres(self) -> PartSpec:
        async def command() -> list[str]:
            await asyncio.to_thread(self._cluster.prepare)
            return self._cluster.command(death_signal="INT")

        async def is_ready(pid: int) -> bool:
            return self._cluster.is_ready(pid)

        return PartSpec(
            name="postgres",
            command=command,
            is_ready=is_ready,
            address="on a port of its own",
            stop_signal=signal.SIGINT,
        )

    def _temporal(self) -> PartSpec:
        settings = self._settings
        words = [
            _program("temporal"), "server", "start-dev", "--ip", "127.0.0.1",
            "--port", str(settings.temporal_port), "--ui-port", str(settings.temporal_ui_port),
            "--namespace", settings.temporal_namespace, "--db-filename", str(self._data.root / "temporal.db"),
            "--ui-disable-news-fetch", "--log-level", "warn", "--log-format", "json", *_TEMPORAL_FLAGS,
        ]  # fmt: skip

        async def is_ready(_: int) -> bool:
            return await accepts(settings.temporal_port) and await accepts(settings.temporal_ui_port)

        return PartSpec(
            name="temporal",
            command=always(die_with_parent(words)),
            is_ready=is_ready,
            address=f"on 127.0.0.1:{settings.temporal_port}, its UI on http://localhost:{settings.temporal_ui_port}",
        )

    def _traefik(self) -> PartSpec:
        settings = self._settings
        old = self._kubernetes.old_traefik if self._kubernetes else None

        async def command() -> list[str]:
            path = write_configuration(
                self._data.root / "traefik",
                settings,
                mode=self._mode,
                instance=self._instance,
                secret_key=self._secret_key,
                old_traefik=old is not None,
            )
            return die_with_parent([str(old or _program("traefik")), f"--configFile={path}"])

        async def is_ready(_: int) -> bool:
            return await accepts(settings.preview_port)

        return PartSpec(
            name="traefik",
            command=command,
            is_ready=is_ready,
            environment=self._kubernetes_environment,
            address=f"on 127.0.0.1:{settings.preview_port}",
        )

    def _worker(self) -> PartSpec:
        ready_file = self._data.run / "worker.ready"

        async def is_ready(pid: int) -> bool:
            return is_noted(ready_file, pid)

        return PartSpec(
            name="worker",
            command=always(die_with_parent([sys.executable, "-m", "workers.worker"])),
            is_ready=is_ready,
            environment=lambda: {**self.environment(), "READY_FILE": str(ready_file)},
            address=f"({self._mode} runtime)",
            stop_timeout_s=15.0,
        )

    def _api(self) -> PartSpec:
        port = self._settings.api_port

        async def is_ready(_: int) -> bool:
            return await answers_ok(port, "/healthz")

        return PartSpec(
            name="api",
            command=always(die_with_parent([sys.executable, "-m", "workers.api"])),
            is_ready=is_ready,
            environment=self.environment,
            address=f"on http://localhost:{port}",
            stop_timeout_s=15.0,
        )


def _program(name: str) -> str:
    """A program that a wheel of ours put beside this interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise StackError(f"{path} isn't there: `make up` installs it.")
    return str(path)
