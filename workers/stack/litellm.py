"""`LITELLM=1`: a LiteLLM proxy of the stack's own before its models, with a virtual key and a budget for each user.

Its tables are in a database of their own beside the service's. Master key and salt follow from the secret key, and
reach proxy, API and worker through their environments alone.
"""

import asyncio
import base64
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, create_subprocess_exec
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from activities.errors import ModelFault
from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from storage.secret_box import SecretBox
from workers.settings import Settings
from workers.stack.console import say
from workers.stack.data_directory import DataDirectory, StackError
from workers.stack.models import Models
from workers.stack.own_port import choose_port
from workers.stack.part import PartSpec
from workers.stack.privileges import die_with_parent
from workers.stack.readiness import answers_ok
from workers.wiring import PRICED_TOKENS

_PROGRAM = Path(__file__).parents[2] / "docker" / "litellm" / "proxy"
_DATABASE = "litellm"
_OPENAI = "https://api.openai.com/v1"
_SCRIPTED = ("demo", "scripted")
_MODELS_LIMIT = 200
_FIRST_PORT = 20_000
_BOOT_TIMEOUT_S = 240.0
_INSTALL_TIMEOUT_S = 900.0
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Upstream:
    """What the proxy stands before. `models`: their names there; empty: all that it offers."""

    base_url: str
    key: str
    models: tuple[str, ...]
    input_price: Decimal
    output_price: Decimal


class Proxy:
    """The part and what API and worker are told of it. `database_url`: the service's own, asked once Postgres runs.

    Raises `StackError` where the settings name another proxy.
    """

    def __init__(
        self,
        settings: Settings,
        data: DataDirectory,
        models: Models,
        *,
        secret_key: str,
        database_url: Callable[[], str],
    ) -> None:
        if settings.litellm_api_base:
            raise StackError("LITELLM starts a proxy and LITELLM_API_BASE names one that runs: unset one of the two.")
        self._upstream = _upstream(settings, models)
        self._folder = data.root / "litellm"
        self._port = choose_port(data.root / "litellm-port.json", first=_FIRST_PORT)
        self._database_url = database_url
        box = SecretBox(secret_key)
        self._master_key, self._salt = _key(box, "litellm-master-key"), _key(box, "litellm-salt")
        address = f"http://127.0.0.1:{self._port}"
        self.shown = f"LiteLLM proxy on {address} before: {models.shown}"
        self.environment: Mapping[str, str] = {"LITELLM_API_BASE": address, "LITELLM_MASTER_KEY": self._master_key}
        self.part = PartSpec(
            name="litellm",
            command=self._prepare,
            is_ready=self._is_ready,
            environment=self._secrets,
            address=f"on {address}",
            start_timeout_s=_BOOT_TIMEOUT_S,
        )

    async def _is_ready(self, _: int) -> bool:
        return await answers_ok(self._port, "/health/readiness")

    def _secrets(self) -> dict[str, str]:
        return {
            "DATABASE_URL": _beside(self._database_url()),
            "LITELLM_MASTER_KEY": self._master_key,
            "LITELLM_SALT_KEY": self._salt,
            "OPENAI_API_KEY": self._upstream.key,
            "PYTHON": sys.executable,
        }

    async def _prepare(self) -> list[str]:
        """Install the proxy and make its database unless they are there; its command."""
        await _install()
        await _make_database(self._database_url())
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / "config.yaml"
        path.write_text(json.dumps(await configuration(self._upstream), indent=2))
        return die_with_parent([str(_PROGRAM), "run", str(path), str(self._port)])


def _upstream(settings: Settings, models: Models) -> Upstream:
    named = (settings.openai_model,) if settings.openai_model else ()
    return Upstream(
        base_url=models.environment.get("OPENAI_API_BASE") or settings.openai_api_base or _OPENAI,
        key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else "none",
        models=_SCRIPTED if models.part else named,
        input_price=settings.openai_input_price / PRICED_TOKENS,
        output_price=settings.openai_output_price / PRICED_TOKENS,
    )


async def configuration(upstream: Upstream) -> dict[str, Any]:
    """The proxy's configuration, YAML as JSON is. Raises `StackError` when it would be one without a model."""
    names = upstream.models or await _offered(upstream)
    return {
        "include": [str(_PROGRAM.parent / "settings.yaml")],
        "model_list": [{"model_name": name, "litellm_params": _parameters(name, upstream)} for name in names],
    }


def _parameters(name: str, upstream: Upstream) -> dict[str, Any]:
    """Prices only where they are set: the proxy knows those of many models itself."""
    parameters: dict[str, Any] = {
        "model": f"openai/{name}",
        "api_base": upstream.base_url,
        "api_key": "os.environ/OPENAI_API_KEY",
    }
    if upstream.input_price or upstream.output_price:
        parameters |= {
            "input_cost_per_token": float(upstream.input_price),
            "output_cost_per_token": float(upstream.output_price),
        }
    return parameters


async def _offered(upstream: Upstream) -> tuple[str, ...]:
    model = OpenAICompatibleModel(ModelServer(upstream.base_url, upstream.key))
    try:
        names = tuple(info.id for info in await model.models())[:_MODELS_LIMIT]
    except ModelFault as fault:
        raise StackError(f"The provider doesn't tell its models, so set OPENAI_MODEL. {fault}") from fault
    finally:
        await model.close()
    if not names:
        raise StackError("The provider offers no models, so set OPENAI_MODEL.")
    return names


async def _install() -> None:
    """Have the proxy's own environment; what it says while it makes it is shown. Raises `StackError`."""
    process = await create_subprocess_exec(
        *die_with_parent([str(_PROGRAM), "setup"]), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    said = ""
    try:
        async with asyncio.timeout(_INSTALL_TIMEOUT_S):
            while process.stdout is not None and (line := await process.stdout.readline()):
                said = line.decode(errors="replace").strip().removeprefix("litellm: ") or said
                say("litellm", said)
            code = await process.wait()
    except TimeoutError as error:
        raise StackError(f"The proxy wasn't installed within {_INSTALL_TIMEOUT_S:g} s: {said}") from error
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if code != 0:
        raise StackError(f"The proxy can't be installed: {said}")


async def _make_database(service_url: str) -> None:
    """Beside the service's own database; there already is success. Raises `StackError`."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            connection = await asyncpg.connect(_plain(service_url))
            try:
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", _DATABASE):
                    await connection.execute(f"CREATE DATABASE {_DATABASE}")
            finally:
                await connection.close()
    except asyncpg.DuplicateDatabaseError:
        return
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise StackError(f"The database `{_DATABASE}` for the proxy can't be made: {error}") from error


def _beside(url: str) -> str:
    return urlsplit(_plain(url))._replace(path=f"/{_DATABASE}").geturl()


def _plain(url: str) -> str:
    return url.replace("+asyncpg", "", 1)


def _key(box: SecretBox, purpose: str) -> str:
    return "sk-" + base64.urlsafe_b64encode(box.derive(purpose)).decode().rstrip("=")
