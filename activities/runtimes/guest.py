"""What runs beside a dev server (commands, ledger, terminals), the same for every driver.

A driver opens a *channel*: one process in the container with its standard streams. All the rest is here: our programs
(`inside/`) go over standard input, followed by what the call needs; an end of that input tells them that the caller
has gone. So an argument list never holds anything of the call, and a caller that dies takes its command along.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import resources
from typing import Any, Final, Protocol

from activities.errors import RuntimeFault, RuntimeUnavailableError
from activities.ports import CommandStatus, ExecExit, ExecOutput, ExecSpec
from activities.runtimes.spec import check_environment, check_run_id, project_path
from workflows.contracts.names import STUDIO_DIRECTORY, ProjectRef

OUTPUT_LIMIT: Final = 10 * 1024 * 1024
"""Bytes that the ledger keeps of a command's output."""

_PACKAGE: Final = "activities.runtimes.inside"
_NEEDS: Final = {
    "runs": ("processes", "runs"),
    "commands": ("processes", "runs", "commands"),
    "terminals": ("processes", "terminals"),
    "agent": ("processes", "agent"),
    "supervisor": ("processes", "supervisor"),
}
"""The modules that each program is made of, in the order of their imports."""

_CALL_TIMEOUT_S: Final = 30.0
_KILL_TIMEOUT_S: Final = 10.0
_LATE_S: Final = 5.0
_TIMED_OUT: Final = 124

_LOADER: Final = """
import json, os, sys, types
os.closerange(3, 1 << 16)  # some event loops leave copies of our pipes: a caller would wait for their end
def take(n):
    data = b""
    while len(data) < n:
        piece = os.read(0, n - len(data))
        if not piece: sys.exit(1)
        data += piece
    return data
call = json.loads(take(int(take(10))))
package = sys.modules[call["package"]] = types.ModuleType(call["package"])
for name, text in call["modules"]:
    full = call["package"] + "." + name
    module = sys.modules[full] = types.ModuleType(full)
    setattr(package, name, module)
    exec(compile(text, full, "exec"), module.__dict__)
sys.exit(getattr(getattr(package, call["program"]), call["function"])(call["arguments"]))
"""

PROGRAM: Final = ["-I", "-S", "-c", _LOADER]
"""Arguments of the container's `python3`, the same for every call."""


class Channel(Protocol):
    """A process in a container."""

    async def read(self) -> ExecOutput | None:
        """The next piece of output; None at the end of both streams. Nothing is read ahead of the caller."""

    async def write(self, data: bytes) -> None:
        """To its standard input; returns when the transport has room again."""

    async def exit_code(self) -> int:
        """After the end of output. Raises a fault when it can't be told: never a guess."""


class ChannelOpener(Protocol):
    """A driver's part."""

    def open_channel(self, ref: ProjectRef) -> AbstractAsyncContextManager[Channel]:
        """Run `python3 PROGRAM` in the project's running container. Leaving the context closes its input.

        Raises `ContainerMissingError`, `NotRunningError`, `RuntimeUnavailableError`.
        """


class Guest:
    """Commands, ledger and terminals over channels."""

    def __init__(
        self, opener: ChannelOpener, *, root: Callable[[ProjectRef], str], terminals: Callable[[ProjectRef], str]
    ) -> None:
        """`root`: the project's folder, `terminals`: a folder in memory, both as seen in the container."""
        self._opener = opener
        self._root = root
        self._terminals = terminals
        self._kills: set[asyncio.Task[None]] = set()

    async def exec(self, ref: ProjectRef, spec: ExecSpec) -> AsyncIterator[ExecOutput | ExecExit]:
        """See `Runtime.exec`."""
        token = secrets.token_hex(16)
        arguments = self._run_arguments(ref, spec, token)
        deadline = asyncio.get_running_loop().time() + spec.timeout_s
        ended = False
        try:
            async with self._call(ref, "runs", "main", arguments) as channel:
                try:
                    # The program inside keeps the time by itself; this bound is for the one that it can't keep.
                    while (piece := await _before(deadline + _LATE_S, channel.read())) is not None:
                        yield piece
                    code = await channel.exit_code()
                except TimeoutError:
                    code = _TIMED_OUT
                else:
                    ended = True
            late = asyncio.get_running_loop().time() >= deadline
            yield ExecExit(code, timed_out=code == _TIMED_OUT and late)
        finally:
            if not ended:
                await self._kill_run(ref, token)

    async def start_command(self, ref: ProjectRef, command_id: str, spec: ExecSpec) -> CommandStatus:
        """See `Runtime.start_command`."""
        arguments = self._run_arguments(ref, spec, _token(ref, command_id))
        status = await self._ask(
            ref, "commands", "start", self._entry(ref, command_id) | arguments | {"output_limit": OUTPUT_LIMIT}
        )
        if status is None:
            raise RuntimeUnavailableError("The command could not be started.")
        return CommandStatus(command_id, **status)

    async def command_status(self, ref: ProjectRef, command_id: str) -> CommandStatus | None:
        """See `Runtime.command_status`."""
        status = await self._ask(ref, "commands", "status", self._entry(ref, command_id))
        return None if status is None else CommandStatus(command_id, **status)

    async def command_output(self, ref: ProjectRef, command_id: str, *, offset: int, limit: int) -> bytes:
        """See `Runtime.command_output`."""
        arguments = self._entry(ref, command_id) | {"offset": offset, "limit": limit}
        return await self._read(ref, "commands", "output", arguments)

    async def follow_command(
        self, ref: ProjectRef, command_id: str, *, offset: int
    ) -> AsyncIterator[bytes | CommandStatus]:
        """See `Runtime.follow_command`."""
        async with self._call(ref, "commands", "follow", self._entry(ref, command_id) | {"offset": offset}) as channel:
            while (piece := await channel.read()) is not None:
                if piece.stream == "stdout":
                    yield piece.data
            await channel.exit_code()
        status = await self.command_status(ref, command_id)
        if status is not None:
            yield status

    async def kill_command(self, ref: ProjectRef, command_id: str) -> None:
        """See `Runtime.kill_command`."""
        arguments = self._entry(ref, command_id) | {"token": _token(ref, command_id)}
        await self._read(ref, "commands", "kill", arguments)

    @asynccontextmanager
    async def terminal(
        self, ref: ProjectRef, *, session: str, cols: int, rows: int, limit: int, idle_s: float
    ) -> AsyncIterator[Channel]:
        """A channel joined to the session; see `activities/runtimes/terminals.py`."""
        arguments = {
            "folder": self._terminals(ref),
            "session": check_run_id(session),
            "token": f"terminal-{session}",
            "cwd": self._root(ref),
            "cols": cols,
            "rows": rows,
            "limit": limit,
            "idle_s": idle_s,
        }
        async with self._call(ref, "terminals", "attach", arguments) as channel:
            yield channel

    async def settle(self) -> None:
        """Wait for kills that outlived their callers."""
        await asyncio.gather(*self._kills, return_exceptions=True)

    def _run_arguments(self, ref: ProjectRef, spec: ExecSpec, token: str) -> dict[str, Any]:
        check_environment(spec.environment)
        return {
            "token": token,
            "command": spec.command,
            "cwd": project_path(spec.cwd, self._root(ref)),
            "environment": dict(spec.environment),
            "timeout_s": spec.timeout_s,
        }

    def _entry(self, ref: ProjectRef, command_id: str) -> dict[str, Any]:
        return {"folder": f"{self._root(ref)}/{STUDIO_DIRECTORY}/commands", "id": check_run_id(command_id)}

    @asynccontextmanager
    async def _call(
        self, ref: ProjectRef, program: str, function: str, arguments: Mapping[str, Any]
    ) -> AsyncIterator[Channel]:
        async with self._opener.open_channel(ref) as channel:
            await channel.write(message(program, function, arguments))
            yield channel

    async def _read(self, ref: ProjectRef, program: str, function: str, arguments: Mapping[str, Any]) -> bytes:
        """All that a short call prints. Raises a fault when it fails."""
        out, errors = bytearray(), bytearray()
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S), self._call(ref, program, function, arguments) as channel:
                while (piece := await channel.read()) is not None:
                    (out if piece.stream == "stdout" else errors).extend(piece.data)
                code = await channel.exit_code()
        except TimeoutError:
            raise RuntimeUnavailableError("The container took too long to answer.") from None
        if code:
            raise RuntimeUnavailableError(f"The container couldn't do it: {_last_line(errors) or f'exit code {code}'}")
        return bytes(out)

    async def _ask(
        self, ref: ProjectRef, program: str, function: str, arguments: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        answer = await self._read(ref, program, function, arguments)
        try:
            value: dict[str, Any] | None = json.loads(answer)
        except ValueError:
            raise RuntimeUnavailableError("The container's answer makes no sense.") from None
        return value

    async def _kill_run(self, ref: ProjectRef, token: str) -> None:
        """End a run for certain, also when its caller is being cancelled again and again."""
        task = asyncio.create_task(self._kill(ref, token))
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)
        await asyncio.shield(task)

    async def _kill(self, ref: ProjectRef, token: str) -> None:
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S), self._call(ref, "runs", "kill", {"token": token}) as channel:
                while await channel.read() is not None:
                    pass
        except (RuntimeFault, TimeoutError):
            return  # no container, no process; and the program inside has seen its input end already


async def collect(stream: AsyncIterator[ExecOutput | ExecExit]) -> tuple[bytes, bytes, ExecExit]:
    """A whole run: standard output, standard error and its end. For short output only: nothing bounds it."""
    out: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    end = ExecExit(-1)
    async for item in stream:
        if isinstance(item, ExecOutput):
            out[item.stream] += item.data
        else:
            end = item
    return bytes(out["stdout"]), bytes(out["stderr"]), end


async def _before(deadline: float, reading: Any) -> Any:  # noqa: ANN401 -- whatever is awaited
    async with asyncio.timeout_at(deadline):
        return await reading


def message(program: str, function: str, arguments: Mapping[str, Any]) -> bytes:
    """What a program of ours is told over standard input: its text and its arguments."""
    call = json.dumps(
        {
            "package": _PACKAGE,
            "modules": [(name, _SOURCES[name]) for name in _NEEDS[program]],
            "program": program,
            "function": function,
            "arguments": dict(arguments),
        }
    ).encode()
    return b"%010d" % len(call) + call


def _token(ref: ProjectRef, command_id: str) -> str:
    return f"command-{ref.project_id}-{command_id}"


def _last_line(text: bytearray) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


_SOURCES: Final = {
    name: resources.files(_PACKAGE).joinpath(f"{name}.py").read_text(encoding="utf-8")
    for name in ("processes", *_NEEDS)
}
