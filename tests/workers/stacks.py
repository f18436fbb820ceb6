"""A stack of `make up` as its user has it: a foreground process, its output, its pid files."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
KEPT = ("PATH", "HOME", "LANG", "DOCKER_HOST", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE")
"""What the machine needs, its network's own certificate authority included: npm retries for a minute without it."""
PARTS = ("postgres", "temporal", "model", "traefik", "worker", "api")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def stack_environment(data: Path) -> dict[str, str]:
    """Free ports and a folder of its own, nothing of the developer's own settings."""
    ports = dict(zip(("API_PORT", "PREVIEW_PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT"), free_ports(4), strict=True))
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "DATA_DIR": str(data), "DEPLOYMENT_MODE": "docker", **{n: str(p) for n, p in ports.items()}}


@contextmanager
def running_stack(environment: Mapping[str, str], ready_s: float = 90.0) -> Iterator["RunningStack"]:
    """A stack that is ready, ended afterwards as its user would end it: with success, and nothing of it lives on."""
    running = RunningStack(environment)
    try:
        running.wait_ready(ready_s)
        yield running
    finally:
        code = running.stop()
    assert code == 0, running.output
    assert running.processes() == []


class RunningStack:
    """`python -m workers.stack up`, started at once."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.data = Path(environment["DATA_DIR"])
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.stack", "up"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(self._process.stdout)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.environment['API_PORT']}"

    def wait_ready(self, timeout_s: float = 90.0) -> float:
        """Seconds until it said so."""
        began = time.monotonic()
        self.wait_line("stack", "ready after", timeout_s=timeout_s)
        return time.monotonic() - began

    def wait_line(self, *words: str, timeout_s: float = 30.0, since: int = 0) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in self.lines[since:]:
                if all(word in line for word in words):
                    return line
            if self._process.poll() is not None and not self._reader.is_alive():
                raise AssertionError(f"ended with {self._process.returncode} before {words}:\n{self.output}")
            time.sleep(0.05)
        raise AssertionError(f"no line with {words} within {timeout_s} s:\n{self.output}")

    def pid(self, part: str) -> int:
        return int((self.data / "run" / f"{part}.pid").read_text())

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_end(self, timeout_s: float = 60.0) -> int:
        code = self._process.wait(timeout_s)
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def stop(self) -> int:
        """Ctrl-C."""
        if self._process.poll() is None:
            self.signal(signal.SIGINT)
        return self.wait_end()

    def processes(self) -> list[psutil.Process]:
        """All that belong to this stack, whoever started them."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            named = str(self.data) in " ".join(process.cmdline())
            return process.pid != os.getpid() and (named or process.environ().get("DATA_DIR") == str(self.data))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False

    def wait_answering(self, timeout_s: float = 30.0) -> None:
        """Until `/readyz` says 200."""
        deadline = time.monotonic() + timeout_s
        answer = "nothing"
        while time.monotonic() < deadline:
            try:
                response = httpx.get(f"{self.api}/readyz", timeout=5)
            except httpx.TransportError as error:
                answer = repr(error)
            else:
                if response.status_code == 200:
                    return
                answer = response.text
            time.sleep(0.1)
        raise AssertionError(f"not ready within {timeout_s} s: {answer}\n{self.output}")
