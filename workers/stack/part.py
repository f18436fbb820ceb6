"""One part of the stack: a process that is started, waited for until it answers, and started again when it died."""

import asyncio
import os
import shutil
import signal
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process, create_subprocess_exec
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.stack.data_directory import DataDirectory, StackError
from workers.stack.leftovers import forget_pid, write_pid

_POLL_S = 0.05
_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
_STABLE_S = 30.0
"""A part that lived this long is well: its next death begins the back-off anew."""
_FIRST_ATTEMPTS = 3
"""A part that dies this often before it was ever ready ends `up`: it is misconfigured, not unlucky."""
_LOG_LIMIT = 10 * 1024 * 1024
_SHOWN_LINES = 15


@dataclass(frozen=True)
class PartSpec:
    """What a part is. `command` and `environment` are asked before each start; `is_ready` gets the process id.

    `address` is shown. Times are seconds.
    """

    name: str
    command: Callable[[], Awaitable[list[str]]]
    is_ready: Callable[[int], Awaitable[bool]]
    environment: Callable[[], Mapping[str, str]] = dict
    address: str = ""
    start_timeout_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 10.0


class Part:
    """A supervised process. `say` gets a line for its user at each event."""

    def __init__(self, spec: PartSpec, data: DataDirectory, say: Callable[[str, str], None]) -> None:
        self.spec = spec
        self._data = data
        self._say = say
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether it has been ready once and is kept alive since."""
        return self._keeper is not None

    async def up(self) -> None:
        """Return when it is ready; from then on it is kept alive. Raises `StackError` when it never gets there."""
        began = time.monotonic()
        for attempt in range(_FIRST_ATTEMPTS):
            if await self._start():
                break
            await self._end_process()
            if attempt + 1 == _FIRST_ATTEMPTS:
                raise StackError(f"{self.spec.name} doesn't start. {self._last_lines()}")
            await asyncio.sleep(_BACKOFF_S[attempt])
        self._say(self.spec.name, f"ready after {time.monotonic() - began:.1f} s  {self.spec.address}".rstrip())
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

    async def down(self) -> None:
        """End it: its stop signal, then SIGKILL for it and all of its group. Not running is success."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._end_process()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            _kill_group(self._process.pid)

    def trim_log(self) -> None:
        """Keep the log bounded; the process goes on writing, since it appends."""
        path = self._log_path
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            how = await self._ended()
            if time.monotonic() - began > _STABLE_S:
                failures = 0
            delay = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            failures += 1
            self._say(self.spec.name, f"{how}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            began = time.monotonic()
            if await self._start():
                self._say(self.spec.name, f"ready again after {time.monotonic() - began:.1f} s")
            else:
                await self._end_process()

    async def _ended(self) -> str:
        """Wait for the process's end; how it came."""
        if self._process is None:
            return f"doesn't get ready. {self._last_lines()}\n   "
        code = await self._process.wait()
        _kill_group(self._process.pid)
        return _describe(code)

    async def _start(self) -> bool:
        """Start the process; True when it got ready, False when it ended before or its time ran out."""
        self.trim_log()
        (self._data.run / f"{self.spec.name}.ready").unlink(missing_ok=True)
        try:
            command = await self.spec.command()
            with self._log_path.open("ab") as log:
                process = await create_subprocess_exec(
                    *command,
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=STDOUT,
                    env={**os.environ, **self.spec.environment()},
                    start_new_session=True,
                )
        except (OSError, RuntimeError) as error:
            self._say(self.spec.name, str(error))
            return False
        self._process = process
        write_pid(self._data.run, self.spec.name, process.pid)
        deadline = time.monotonic() + self.spec.start_timeout_s
        while process.returncode is None and time.monotonic() < deadline:
            if await self.spec.is_ready(process.pid):
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(self.spec.stop_signal)
            try:
                async with asyncio.timeout(self.spec.stop_timeout_s):
                    await process.wait()
            except TimeoutError:
                self._say(self.spec.name, f"didn't end within {self.spec.stop_timeout_s:g} s and was killed")
        _kill_group(process.pid)
        await process.wait()
        forget_pid(self._data.run, self.spec.name)

    @property
    def _log_path(self) -> Path:
        return self._data.logs / f"{self.spec.name}.log"

    def _last_lines(self) -> str:
        try:
            lines = self._log_path.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        except FileNotFoundError:
            lines = []
        if not lines:
            return f"It wrote nothing to {self._log_path}."
        return f"Its last lines ({self._log_path}):\n" + "\n".join(f"    {line}" for line in lines)


def always(words: list[str]) -> Callable[[], Awaitable[list[str]]]:
    """A command that is the same at each start."""

    async def command() -> list[str]:
        return words

    return command


def _kill_group(pid: int) -> None:
    """Kill what is left of the process group that the part led; already gone is success."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
