"""A Temporal of the tests' own, without workers: what is started and signalled there stays as it was accepted."""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.api.stand import free_port

_BINARY = Path(sys.executable).parent / "temporal"
_READY_S = 60.0


class TemporalServer:
    """A dev server that keeps everything in memory."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `stop`
        port = self.address.rpartition(":")[2]
        attributes = [f"--search-attribute={name}=Keyword" for name in ("UserId", "ProjectId", "TaskState")]
        self._process = subprocess.Popen(
            [_BINARY, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", port, *attributes],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> None:
        """Return when it takes connections."""
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self._log.seek(0)
                    raise RuntimeError(self._log.read().decode(errors="replace")) from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._log.close()
