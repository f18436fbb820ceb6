"""What a tool is, and what it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from activities.ports import FileChange, FileStore, Runtime
from workflows.contracts.names import ProjectRef


class ToolKind(StrEnum):
    """Neighbouring calls of one kind run side by side; kinds run in the order in which the model wrote them.

    `look`: no effects, never asked for. `edit`: changes files; two edits of one path take turns. `act`: everything
    else with effects. `alone`: side by side with nothing.
    """

    LOOK = "look"
    EDIT = "edit"
    ACT = "act"
    ALONE = "alone"


@dataclass(frozen=True)
class ToolResult:
    """What the model is told. `failed`: the tool did not do what was asked, and `text` says why and what to do.

    `exit_code` only of commands. `image`: a PNG or, where that would be too large, a JPEG of at most 1 MiB; kept for
    the project's owner.
    """

    text: str
    failed: bool = False
    exit_code: int | None = None
    image: bytes | None = None


class ToolFailure(Exception):  # noqa: N818 -- an answer to the model, not a fault of ours
    """The tool can't do what was asked; the message is for the model: what is wrong and what to do instead."""


class CallNotes(Protocol):
    """What a call and its task remember, and the log is told of their files, durably; survives the worker."""

    async def intent(self) -> Mapping[str, Any] | None:
        """What an earlier attempt of this call noted, None on the first."""

    async def note_intent(self, intent: Mapping[str, Any]) -> None:
        """Note what this call is about to do, before it does it. Raises when another attempt has taken over."""

    async def seen_etag(self, path: str) -> str | None:
        """The version of the file that this task last read or wrote, None when it hasn't."""

    async def note_etag(self, path: str, etag: str | None) -> None:
        """Note the version that was read or written; None: the file is gone."""

    async def tell_changes(self, changes: Sequence[FileChange]) -> None:
        """Tell of files that this call has written; what has been told already isn't told again."""

    async def todo(self) -> list[dict[str, Any]]:
        """The task's list of things to do."""

    async def set_todo(self, items: list[dict[str, Any]]) -> None:
        """Replace the list."""

    async def output_of(self, call_id: str) -> bool:
        """Whether this task has a command call of this id, whose output may be read."""


class OutputTeller(Protocol):
    """Tells the task's watchers what a command writes, as it comes."""

    async def told(self) -> int:
        """How many bytes of this call's output have been told already, by earlier attempts."""

    async def tell(self, data: bytes, *, end: int) -> None:
        """Tell a piece; `end`: bytes of output up to and with it. Ends silently at the bound of what is told."""


@dataclass(frozen=True)
class DevServerView:
    """A dev server as its row says. `log_tail`: its last lines when it failed, else None."""

    state: str
    reason: str | None
    exit_code: int | None
    log_tail: str | None


class DevServerControl(Protocol):
    """The project's dev server, by the same commands as its owner's."""

    async def view(self) -> DevServerView:
        """How it stands now."""

    async def start(self) -> DevServerView:
        """Start it unless it runs, and wait until it runs or has failed."""

    async def restart(self, notes: CallNotes) -> DevServerView:
        """Restart it, once however often the call is tried, and wait until it runs or has failed."""


@dataclass(frozen=True)
class PreviewAddress:
    """How the service itself opens a project's preview: `url` as its owner sees it, without a path.

    `token`: as `?token=` of the first request it is exchanged, once, for a cookie that this host alone gets.
    """

    url: str
    token: str = field(repr=False)


class PreviewAccess(Protocol):
    """A way into the project's own preview for the time of one call."""

    async def open(self) -> PreviewAddress:
        """Address and credentials, good for a few minutes."""


@dataclass(frozen=True)
class ToolContext:
    """All that a tool may use for one call. `id`: unique and the same at every attempt; it names ledger commands."""

    id: str
    ref: ProjectRef
    files: FileStore
    runtime: Runtime
    notes: CallNotes
    output: OutputTeller
    dev_server: DevServerControl
    preview: PreviewAccess


Arguments = TypeVar("Arguments", bound=BaseModel)


class Tool(Generic[Arguments]):
    """A tool. A subclass sets the class variables and `run`; its docstring's first line is not shown to models.

    `description` and `Arguments` (with the fields' descriptions) are all that a model knows of it. Arguments are
    validated before `run`; what doesn't fit is told to the model. `run` may be called again after a crash with the
    same `context.id`: it must find out what was done (`context.notes`), and do nothing twice.
    Raises `ToolFailure`, domain errors (`StudioError`) and `RuntimeFault`s; the last two become answers, too, unless
    they are retryable.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    kind: ClassVar[ToolKind]
    arguments: ClassVar[type[BaseModel]]

    async def run(self, context: ToolContext, arguments: Arguments) -> ToolResult:
        """Do it."""
        raise NotImplementedError

    def has_effects(self, arguments: Arguments) -> bool:  # noqa: ARG002 -- for those that override it
        """Whether this call changes anything: such calls are asked for, where the task's owner wants to be asked."""
        return self.kind is not ToolKind.LOOK

    def touches(self, arguments: Arguments) -> str | None:  # noqa: ARG002 -- for those that override it
        """The path that a call of an `edit` tool changes, so that two calls on one path take turns."""
        return None
