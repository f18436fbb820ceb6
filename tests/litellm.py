"""A real LiteLLM proxy for tests: virtual keys in a real PostgreSQL, the scripted models behind it.

    @pytest.mark.litellm
    async def test_…(litellm_proxy: LiteLLMProxy) -> None: …

A proxy takes half a minute to come up and half a gigabyte, so there is one for all processes of a test run. A keeper,
`python -m tests.litellm FOLDER`, is started by the first who wants it, and ends it when nobody holds the folder any
longer, however they went.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from workers.stack.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[1]
PROXY = ROOT / "docker" / "litellm" / "proxy"
INPUT_PRICE, OUTPUT_PRICE = 1e-5, 1e-4
"""Of a token of `scripted` and `demo`, in USD."""
_BOOT_S = 240.0
"""Beside other tests on two cores; alone it takes 25 to 40 s."""
_SET_UP_S = 600


@dataclass(frozen=True)
class LiteLLMProxy:
    """`base_url`: its root. `models_url`: root of the scripted models' server behind it."""

    base_url: str
    master_key: str
    models_url: str


@cache
def missing_litellm() -> str | None:
    """Why there can be no proxy here; installs it first."""
    try:
        result = subprocess.run(
            [PROXY, "setup"], capture_output=True, text=True, timeout=_SET_UP_S, check=False, env=_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"LiteLLM's proxy can't be installed: {error}"
    return None if result.returncode == 0 else f"LiteLLM's proxy can't be installed: {result.stderr[-2000:]}"


@pytest.fixture(scope="session")
def litellm_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLMProxy]:
    """The run's proxy with the models `scripted` and `demo` at a price, `free` without one, and `gone`: its server is
    away. Others use it, too: have users of your own. A test that asks for it has the marker `litellm`.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "litellm"
    folder.mkdir(exist_ok=True)
    with _held(folder / "users", fcntl.LOCK_SH):
        with _held(folder / "start", fcntl.LOCK_EX):
            proxy = _read(folder) or _start_keeper(folder)
        yield proxy


def _start_keeper(folder: Path) -> LiteLLMProxy:
    log = folder / "keeper.log"
    if not (folder / "failed").exists():  # once is enough: the next test would wait as long for the same
        words = ["setsid", "--fork", sys.executable, "-m", "tests.litellm", str(folder)]
        with log.open("wb") as output:
            subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True)
    deadline = time.monotonic() + _BOOT_S
    while time.monotonic() < deadline and not (folder / "failed").exists():
        if proxy := _read(folder):
            return proxy
        time.sleep(0.1)
    raise AssertionError(f"LiteLLM's proxy didn't come up:\n{log.read_text(errors='replace')[-4000:]}")


def _read(folder: Path) -> LiteLLMProxy | None:
    try:
        return LiteLLMProxy(**json.loads((folder / "proxy.json").read_text()))
    except FileNotFoundError:
        return None


def keep(folder: Path) -> None:
    """The keeper: run a proxy until nobody holds `users`."""
    told = folder / "proxy.json"
    try:
        with (folder / "users").open("a") as users, running_proxy() as proxy:
            fresh = told.with_suffix(".new")
            fresh.write_text(json.dumps(asdict(proxy)))
            fresh.rename(told)
            while not _try_lock(users.fileno()):
                time.sleep(0.2)
            told.unlink()
    except BaseException:
        (folder / "failed").touch()
        raise


@contextmanager
def running_proxy() -> Iterator[LiteLLMProxy]:
    """A proxy with all it needs, gone afterwards."""
    with ExitStack() as opened:
        folder = Path(tempfile.mkdtemp(prefix="studio-litellm-", dir="/tmp"))
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o711)  # PostgreSQL runs as another user
        models_port, port, closed_port = _free_ports(3)
        models = [sys.executable, "-m", "workers.scripted_model", "--port", str(models_port)]
        opened.enter_context(_running(models, folder / "models.log"))
        postgres = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"})
        opened.callback(postgres.stop)
        database = postgres.start().replace("+asyncpg", "")
        config = folder / "config.yaml"
        config.write_text(
            json.dumps(_config(f"http://127.0.0.1:{models_port}/v1", f"http://127.0.0.1:{closed_port}/v1"))
        )
        proxy = LiteLLMProxy(
            f"http://127.0.0.1:{port}", f"sk-{secrets.token_urlsafe(24)}", f"http://127.0.0.1:{models_port}"
        )
        told = {"DATABASE_URL": database, "LITELLM_MASTER_KEY": proxy.master_key, "LITELLM_SALT_KEY": "sk-salt"}
        log = folder / "proxy.log"
        process = opened.enter_context(_running([PROXY, "run", config, str(port)], log, **told))
        _wait_until_up(proxy, process, log)
        yield proxy


def _config(models_url: str, nowhere: str) -> dict[str, Any]:
    def entry(name: str, model: str, prices: dict[str, float] | None = None, url: str = models_url) -> dict[str, Any]:
        params = {"model": f"openai/{model}", "api_base": url, "api_key": "none", **(prices or {})}
        info = {"max_input_tokens": 100_000, "supports_function_calling": name != "free"}
        return {"model_name": name, "litellm_params": params, "model_info": info}

    prices = {"input_cost_per_token": INPUT_PRICE, "output_cost_per_token": OUTPUT_PRICE}
    return {
        "include": [str(PROXY.parent / "settings.yaml")],
        "model_list": [
            entry("scripted", "scripted", prices),
            entry("demo", "demo", prices),
            entry("free", "scripted"),
            entry("gone", "scripted", url=nowhere),
        ],
    }


def _wait_until_up(proxy: LiteLLMProxy, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _BOOT_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(httpx.TransportError, ValueError, AttributeError):
                if client.get(f"{proxy.base_url}/health/readiness").json().get("db") == "connected":
                    return
            time.sleep(0.2)
    raise AssertionError(f"it isn't ready:\n{log.read_text(errors='replace')[-4000:]}")


@contextmanager
def _running(words: list[Any], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=output, stderr=output, env=_environment() | environment, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Ours, without the developer's own keys and databases."""
    private = ("LITELLM_", "OPENAI_", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    return kept | {"PYTHON": sys.executable}


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, how)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        probes = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
