"""The ports behind which every effect stands. Drivers implement them; nobody else imports a driver.

Shapes are plain frozen dataclasses, times are seconds, sizes bytes unless a name says otherwise.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from workflows.contracts.errors import StudioError
from workflows.contracts.names import ProjectRef

# --- Runtime ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResourceLimits:
    """Bounds of one dev server's container: memory = memory + swap, CPU in cores, processes, open files."""

    memory_mb: int = 1024
    cpus: float = 1.0
    pids: int = 256
    open_files: int = 8192


@dataclass(frozen=True)
class DevServerSpec:
    """All that a container is made from; the same spec gives the same `spec_hash`, on every driver.

    `command` and `install` are run by `sh` in the project's folder with `PORT` set; `install` first, and only when
    `install_inputs` (paths in the project, e.g. `package-lock.json`) have changed since it last succeeded.
    `environment` holds the owner's variables: never logged, never in a workflow payload.
    """

    ref: ProjectRef
    command: str
    port: int
    install: str | None = None
    install_inputs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: ResourceLimits = field(default_factory=ResourceLimits)


class ContainerState(StrEnum):
    """`created`: made, never ran, or its start failed. `running`: the process lives, whatever HTTP says."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True)
class ContainerStatus:
    """A container as the runtime sees it now. `exit_code` only when `exited`.

    `address` is where the server inside is reached from the service's host, None unless running. `lingering`: exited,
    and what it ran in still holds memory of the installation's until `wait`, `stop` or a start has seen to it.
    """

    ref: ProjectRef
    id: str
    state: ContainerState
    spec_hash: str
    started_at: datetime | None = None
    exit_code: int | None = None
    out_of_memory: bool = False
    address: tuple[str, int] | None = None
    lingering: bool = False


@dataclass(frozen=True)
class ExecSpec:
    """A command in a running container, by `sh -c`. `cwd` is relative to the project's folder."""

    command: str
    cwd: str = "."
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0


@dataclass(frozen=True)
class ExecOutput:
    """A piece of output as it came."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True)
class ExecExit:
    """The end of a command; always the last item. `exit_code` 124 with `timed_out` when its time ran out."""

    exit_code: int
    timed_out: bool = False


@dataclass(frozen=True)
class CommandStatus:
    """A ledger command: `exit_code` is None while it runs. `output_size`: bytes of output so far.

    `exit_code` 124 with `timed_out` when its time ran out, 137 with a `note` when its container went from under it.
    """

    id: str
    exit_code: int | None
    output_size: int
    timed_out: bool = False
    note: str = ""


class Terminal(Protocol):
    """An open PTY. `session` names it: opening with the same name again replays the last 64 KiB and goes on."""

    session: str

    async def read(self) -> bytes:
        """Return the next bytes; empty when the shell has ended."""

    async def write(self, data: bytes) -> None:
        """Type `data`."""

    async def resize(self, cols: int, rows: int) -> None:
        """Tell the shell the window's size."""


class Runtime(Protocol):
    """One dev server per project, in isolation. Truth is in the runtime's labels: drivers keep nothing in memory.

    Errors are `RuntimeFault`s (activities/errors.py), classed by cause. No call retries by itself.
    """

    name: str

    async def launch(self, spec: DevServerSpec, *, on_stage: "StageListener") -> ContainerStatus:
        """Have exactly one container running that was made from `spec`.

        | there is | then |
        |---|---|
        | running, same spec hash | adopted as it is |
        | created or exited, same hash | started |
        | any with another hash | removed, made anew |
        | none | made and started |
        Safe to call twice and at once; a failed start leaves no half-made container.
        """

    async def stop(self, ref: ProjectRef, *, grace_s: float = 5.0) -> None:
        """Stop it and keep what a start needs. Not there, or stopped already, is success."""

    async def remove(self, ref: ProjectRef) -> None:
        """Remove container, commands and terminals. Not there is success."""

    async def remove_user(self, user_id: int) -> None:
        """Remove what all of a user's projects share (network). In use, or not there, is success."""

    async def inspect(self, ref: ProjectRef) -> ContainerStatus | None:
        """The project's container now, or None."""

    async def discover(self) -> list[ContainerStatus]:
        """Every container of this installation, found by label."""

    async def wait(self, ref: ProjectRef) -> ContainerStatus | None:
        """Return when the container no longer runs: its last status, or None when it is gone."""

    async def probe(self, ref: ProjectRef, port: int) -> bool:
        """Whether an HTTP request to the server inside gets any HTTP answer below 500; asks for at most 2.5 s."""

    def logs(self, ref: ProjectRef, *, tail: int = 200, follow: bool = False) -> AsyncIterator[bytes]:
        """The server's output, the last `tail` lines first; with `follow` until it ends. Pieces as they come."""

    def exec(self, ref: ProjectRef, spec: ExecSpec) -> AsyncIterator[ExecOutput | ExecExit]:
        """Run a command. Timeout, cancellation and closing the iterator kill its whole process tree."""

    async def start_command(self, ref: ProjectRef, command_id: str, spec: ExecSpec) -> CommandStatus:
        """Run a ledger command, in the background, once: the same id again changes nothing and tells its status."""

    async def command_status(self, ref: ProjectRef, command_id: str) -> CommandStatus | None:
        """How a ledger command stands, None when it was never started."""

    async def command_output(self, ref: ProjectRef, command_id: str, *, offset: int, limit: int) -> bytes:
        """A range of a ledger command's output (stdout and stderr as they came)."""

    def follow_command(
        self, ref: ProjectRef, command_id: str, *, offset: int = 0
    ) -> AsyncIterator[bytes | CommandStatus]:
        """A ledger command's output from `offset` on as it comes; its status last, once it has ended."""

    async def kill_command(self, ref: ProjectRef, command_id: str) -> None:
        """Kill a ledger command's process tree; ended is success. One that hasn't begun never will: its start, should
        it still be on its way, finds it ended with exit code 137.
        """

    def terminal(
        self, ref: ProjectRef, *, session: str | None, cols: int, rows: int
    ) -> AbstractAsyncContextManager[Terminal]:
        """Open a shell on a PTY, or return to `session`. Leaving the context detaches; the shell lives on."""

    async def ready(self) -> None:
        """Raise a fault that says why when the runtime can't start containers now; for `/readyz`."""

    async def close(self) -> None:
        """Let connections go. Containers live on."""


class StageListener(Protocol):
    """Called by `launch` as it goes: `pulling`, `creating`, `starting`."""

    async def __call__(self, stage: str) -> None:
        """Take note."""


# --- Templates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """A project template, as `GET /api/templates` shows it."""

    name: str
    title: str
    description: str


# --- FileStore --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileEntry:
    """One entry of a project's tree. `path`: relative, `/`-separated. `etag`: unquoted, files only."""

    path: str
    type: Literal["file", "dir", "symlink"]
    size: int
    modified_at: datetime
    etag: str | None


@dataclass(frozen=True)
class FileListing:
    """Entries sorted by path. `truncated`: there are more than a listing holds; the upper levels come first."""

    items: list[FileEntry]
    truncated: bool = False


@dataclass(frozen=True)
class FileChange:
    """What a write did, for its event. `etag` is None after a deletion."""

    path: str
    op: Literal["created", "modified", "deleted"]
    etag: str | None


@dataclass(frozen=True)
class FilePrecondition:
    """`if_match`: only over a file with this etag (`*`: any; several: separated by commas).
    `if_none_match`: only where nothing is.
    """

    if_match: str | None = None
    if_none_match: bool = False


@dataclass(frozen=True)
class PutFile:
    """Batch operation: write a whole file."""

    path: str
    content: bytes
    precondition: FilePrecondition = FilePrecondition()


@dataclass(frozen=True)
class DeleteFile:
    """Batch operation: delete a file, or with `recursive` a directory."""

    path: str
    recursive: bool = False
    precondition: FilePrecondition = FilePrecondition()


@dataclass(frozen=True)
class MoveFile:
    """Batch operation: rename within the project."""

    source: str
    target: str
    overwrite: bool = False


FileOperation = PutFile | DeleteFile | MoveFile


Tell = Callable[[Sequence[FileChange]], Awaitable[None]]
"""Tells the project's log what a write did. The next write, and the next look at the files, wait until it has: so the
log has a file's changes in the order in which they were made."""


class OpenFile(Protocol):
    """A file opened for reading: what it is and its bytes from one descriptor, so that the two agree."""

    entry: FileEntry

    def chunks(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of `[start, end)`, in pieces of at most 256 KiB."""

    async def close(self) -> None:
        """Close the descriptor."""


class FileStore(Protocol):
    """The one way to a project's files. Paths are resolved beneath the project's root; a link inside it is followed,
    one that leads out never. `.studio/` can be read, not written.

    Raises `BadPathError` for a path that leaves the project or can't be a name, `NotFoundError`, `PreconditionError`,
    `ConflictError` (`is_directory`, `not_a_directory`, `not_a_file`, `exists`), `TooLargeError` (also `project_full`).
    Blocking calls run in threads. Every write is whole or not at all (temp file and rename), and owned by the
    user that the project's container runs as. What `tell` raises goes to the caller; the write stands.
    """

    def root(self, ref: ProjectRef) -> Path:
        """Absolute path of the project's folder on this host, for mounts and watchers."""

    async def exists(self, ref: ProjectRef) -> bool:
        """Whether the project has a folder."""

    async def entries(
        self, ref: ProjectRef, path: str = "", *, depth: int = 1, include_all: bool = False
    ) -> FileListing:
        """Entries below `path`; `node_modules` is one entry, never walked; at most 10,000.

        Left out: names that aren't UTF-8, FIFOs, sockets and devices; `.studio/` unless `include_all`.
        """

    async def stat(self, ref: ProjectRef, path: str) -> FileEntry:
        """One entry."""

    async def open(self, ref: ProjectRef, path: str) -> OpenFile:
        """Open a regular file for reading."""

    async def read(self, ref: ProjectRef, path: str, *, limit: int = 10 * 1024 * 1024) -> bytes:
        """A whole regular file of at most `limit` bytes."""

    async def watch(self, ref: ProjectRef, stop: asyncio.Event, tell: Tell) -> None:
        """Have told what changes from now on, in batches, until `stop` is set or the folder is gone.

        What the store itself writes is in them, too, after its own `tell`. Where `tell` raises, it is asked again.
        """

    async def put(
        self,
        ref: ProjectRef,
        path: str,
        content: AsyncIterator[bytes],
        precondition: FilePrecondition,
        *,
        tell: Tell | None = None,
    ) -> FileChange:
        """Write a whole file, parents made."""

    async def delete(
        self,
        ref: ProjectRef,
        path: str,
        *,
        recursive: bool = False,
        precondition: FilePrecondition | None = None,
        tell: Tell | None = None,
    ) -> FileChange:
        """Delete a file or a link; a directory only with `recursive`."""

    async def move(
        self, ref: ProjectRef, source: str, target: str, *, overwrite: bool = False, tell: Tell | None = None
    ) -> list[FileChange]:
        """Rename within the project, parents made."""

    async def batch(
        self, ref: ProjectRef, operations: list[FileOperation], *, atomic: bool, tell: Tell | None = None
    ) -> list[list[FileChange] | StudioError]:
        """Apply in order; per item its changes or its error. `atomic`: all or none, the items beside the one that
        failed carry a `ConflictError` with code `not_applied`.
        """

    def export(self, ref: ProjectRef) -> AsyncGenerator[bytes, None]:
        """The project as `.tar.gz`, without `.studio/` and `node_modules`, streamed."""

    async def import_archive(
        self, ref: ProjectRef, archive: AsyncIterator[bytes], *, tell: Tell | None = None
    ) -> list[FileChange]:
        """Unpack `.tar.gz` or `.zip` over the project; a hostile one raises `InvalidError` (`bad_archive`), nothing
        written.
        """

    async def create(self, ref: ProjectRef, source: Path | None) -> None:
        """Make the project's folder from a copy of `source` (None: empty), complete or not at all; there already
        is success. Never follows a link while it copies.
        """

    async def destroy(self, ref: ProjectRef) -> None:
        """Remove the project's folder and all in it; gone already is success."""


# --- LanguageModel ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestedCall:
    """A tool call as a model wrote it: `arguments` is its JSON text, not looked at yet."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ModelMessage:
    """One message of a conversation, in OpenAI's terms.

    `tool_calls` only on an assistant's message; `tool_call_id` only, and always, on a `tool` message. `images`: PNG or
    JPEG, only on a user's, and only for a model that sees them.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[RequestedCall, ...] = ()
    tool_call_id: str | None = None
    images: tuple[bytes, ...] = field(default=(), repr=False)


def media_type_of(image: bytes) -> str:
    """PNG's or JPEG's, by how it begins."""
    return "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"


@dataclass(frozen=True)
class ToolSchema:
    """A tool as a model is told of it. `parameters`: JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ModelRequest:
    """What a model is asked. `key`: the user's own at the proxy; None: the service's, where there are no users' keys.

    `max_output_tokens` bounds the answer, and with it what the call can cost.
    """

    model: str
    messages: tuple[ModelMessage, ...]
    tools: tuple[ToolSchema, ...] = ()
    max_output_tokens: int = 8192
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ModelUsage:
    """What a call used. `cost_usd` None: the server didn't say."""

    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None = None


@dataclass(frozen=True)
class ModelEnd:
    """What an answer has come to, besides its text. `usage` None: the server didn't say."""

    finish_reason: str
    tool_calls: tuple[RequestedCall, ...] = ()
    usage: ModelUsage | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be asked for. Prices are USD for one token, None where nobody says.

    `context_tokens`: bound of a request together with its answer. `calls_tools`: it knows native function calling.
    `sees_images`: a message may hold pictures.
    """

    id: str
    input_price: Decimal | None = None
    output_price: Decimal | None = None
    context_tokens: int | None = None
    calls_tools: bool = True
    sees_images: bool = False


class LanguageModel(Protocol):
    """Models behind an OpenAI-compatible API. Errors are `ModelFault`s (activities/errors.py). No call retries by
    itself; cancelling one ends the request at the server, too.
    """

    @property
    def default_model(self) -> str:
        """The model of a request that names none; empty while a server that was to be asked hasn't answered yet."""

    async def answer(self, request: ModelRequest, tell: Callable[[str], None]) -> ModelEnd:
        """Ask, and tell each piece of text as it comes; none is empty. An answer without its end mark is a fault.

        What `tell` raises breaks the call off.
        """

    async def models(self) -> list[ModelInfo]:
        """The models that the server offers, sorted by id; remembered for a minute."""

    async def ready(self) -> None:
        """Raise a fault that says why when the server doesn't answer now; for `/readyz`."""

    async def close(self) -> None:
        """Let connections go."""


@dataclass(frozen=True)
class CompletionPiece:
    """A chat completion, or one chunk of it, in its server's own words. `usage`: what it tells of tokens and cost."""

    body: Mapping[str, Any]
    usage: ModelUsage | None = None


class ChatCompletions(Protocol):
    """OpenAI's chat completions, passed through: what this project doesn't know of a request or answer stays as it is.

    Errors are `ModelFault`s. No call retries by itself. `max_output_tokens` bounds an answer whose request names no
    bound of its own.
    """

    async def complete(self, body: Mapping[str, Any], *, key: str | None, max_output_tokens: int) -> CompletionPiece:
        """The whole answer. Cancelling the call ends the request at the server, too."""

    def stream(
        self, body: Mapping[str, Any], *, key: str | None, max_output_tokens: int
    ) -> AsyncGenerator[CompletionPiece, None]:
        """The chunks as they come, without the end mark; an answer that ends without one is a fault. To be closed."""

    async def close(self) -> None:
        """Let connections go."""


class ModelKeys(Protocol):
    """Virtual keys at the proxy, one per user, found by an alias that follows from the user's id."""

    async def create(self, user_id: int, *, budget_usd: Decimal | None) -> str:
        """Make the user's key and return it; one that is there under the alias is replaced. `budget_usd`: a month's."""

    async def set_budget(self, user_id: int, budget_usd: Decimal | None) -> None:
        """Change the month's budget; no key there is success."""

    async def revoke(self, user_id: int) -> None:
        """Remove the user's key; gone already is success."""
