"""docker-compose.yml as its user has it: its commands, an `.env` of its own, its containers."""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from uuid import uuid4

from docker.models.containers import Container

import docker
from tests.workers.stacks import KEPT, ROOT, RunningStack, free_ports

IMAGES = ROOT / "tests" / "testbed" / "images" / "build"
_PORTS = ("API_PORT", "PREVIEW_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "POSTGRES_PORT", "LITELLM_PORT")
_BUILD_S = 1800
_UP_S = 400
_DOWN_S = 180


@cache
def compose_command() -> tuple[str, ...] | None:
    """The plugin where it is, else the program that it grew from."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else None


def missing_compose() -> str | None:
    return None if compose_command() else "neither `docker compose` nor `docker-compose` is installed"


class ComposeStack(RunningStack):
    """The service by docker-compose.yml, from images made on this machine. Touches nothing until `up`."""

    def __init__(self, folder: Path) -> None:
        name = f"studio-test-{uuid4().hex[:8]}"
        ports = {name: str(port) for name, port in zip(_PORTS, free_ports(len(_PORTS)), strict=True)}
        self.name = name
        self.data = folder
        self.lines: list[str] = []
        self.environment = {
            **ports,
            "COMPOSE_PROJECT_NAME": name,
            "INSTANCE": name,
            "FIRST_USER_ID": str(2_000_000 + secrets.randbelow(1_000_000)),
            "PUBLIC_URL": f"http://api.localhost:{ports['PREVIEW_PORT']}",
            "ENGINE_PROJECTS_ROOT": str(folder / "projects"),
            "OPENAI_MODEL": "scripted",
            "SECRET_KEY": secrets.token_urlsafe(48),
            "POSTGRES_PASSWORD": secrets.token_urlsafe(24),
            "LITELLM_MASTER_KEY": f"sk-{secrets.token_urlsafe(24)}",
            "LITELLM_SALT_KEY": f"sk-{secrets.token_urlsafe(24)}",
        }
        self._file = folder / "env"
        self._file.write_text("".join(f"{key}={value}\n" for key, value in self.environment.items()))

    def up(self) -> None:
        """Build what isn't built and start everything; returns when all that others wait for is well."""
        self._run([str(IMAGES)], _BUILD_S)
        self.compose("up", "--detach", "--no-build", timeout_s=_UP_S)

    def down(self) -> None:
        """End everything, and leave nothing: what the worker made, too."""
        self.compose("down", "--volumes", "--timeout", "20", timeout_s=_DOWN_S)

    def compose(self, *words: str, timeout_s: float = 60.0) -> str:
        command = compose_command()
        assert command is not None
        return self._run([*command, "--env-file", str(self._file), *words], timeout_s)

    def containers(self) -> dict[str, Container]:
        """Those of the compose file, by their service, whatever their state."""
        with closing(docker.from_env()) as engine:
            found = engine.containers.list(
                all=True, filters={"label": f"com.docker.compose.project={self.name}"}, ignore_removed=True
            )
        return {str(each.labels["com.docker.compose.service"]): each for each in found}

    def kill(self, service: str) -> None:
        """As the kernel would: the engine doesn't take it for somebody's wish."""
        with closing(docker.from_env()) as engine:
            os.kill(engine.api.inspect_container(str(self.containers()[service].id))["State"]["Pid"], signal.SIGKILL)

    def wait(self, what: str, holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{self.logs()}"
            time.sleep(0.2)

    def is_well(self, service: str) -> bool:
        with closing(docker.from_env()) as engine:
            state = engine.api.inspect_container(str(self.containers()[service].id))["State"]
        return bool(state["Running"] and state.get("Health", {}).get("Status", "healthy") == "healthy")

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "40")

    def _run(self, words: list[str], timeout_s: float) -> str:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        done = subprocess.run(
            words, cwd=ROOT, env=kept, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout
