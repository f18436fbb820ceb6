"""What a tool is given, on a real file store, with notes that outlive an attempt as the database's do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from activities.files.store import DiskFileStore
from activities.ports import ContainerStatus, FileChange, Runtime
from activities.tools.registry import all_tools, parse
from activities.tools.tool import DevServerView, PreviewAddress, ToolContext, ToolResult
from workflows.contracts.names import ProjectRef


@dataclass
class Notes:
    """`CallNotes` of one task in memory. Intents are of the call that was asked for last."""

    etags: dict[str, str | None] = field(default_factory=dict)
    intents: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    calls: set[str] = field(default_factory=set)
    told: list[FileChange] = field(default_factory=list)
    call: str = "c1"

    async def intent(self) -> Mapping[str, Any] | None:
        return self.intents.get(self.call)

    async def note_intent(self, intent: Mapping[str, Any]) -> None:
        self.intents[self.call] = json.loads(json.dumps(intent))

    async def seen_etag(self, path: str) -> str | None:
        return self.etags.get(path)

    async def note_etag(self, path: str, etag: str | None) -> None:
        self.etags[path] = etag

    async def tell_changes(self, changes: Sequence[FileChange]) -> None:
        self.told += [change for change in changes if change not in self.told]

    async def todo(self) -> list[dict[str, Any]]:
        return self.items

    async def set_todo(self, items: list[dict[str, Any]]) -> None:
        self.items = items

    async def output_of(self, call_id: str) -> bool:
        return call_id in self.calls


class DyingError(Exception):
    """The worker's death."""


class DyingAfterTheWrite(Notes):
    """Notes whose worker dies once the file is written, before it is told and noted."""

    async def tell_changes(self, changes: Sequence[FileChange]) -> None:
        raise DyingError


@dataclass
class Teller:
    """`OutputTeller` that keeps what it is told."""

    data: bytes = b""

    async def told(self) -> int:
        return len(self.data)

    async def tell(self, data: bytes, *, end: int) -> None:
        self.data += data
        assert len(self.data) == end


class NoDevServer:
    """A `DevServerControl` that nobody should ask."""

    async def view(self) -> DevServerView:
        raise AssertionError

    async def start(self) -> DevServerView:
        raise AssertionError

    async def restart(self, notes: object) -> DevServerView:
        raise AssertionError


class NoPreview:
    async def open(self) -> PreviewAddress:
        raise AssertionError


class NoRuntime:
    """A `Runtime` in which no container has ever been."""

    async def inspect(self, ref: ProjectRef) -> ContainerStatus | None:
        return None


@dataclass
class World:
    """A task in a project. `run` is one attempt of a call, as the registry and the caller make it."""

    context: ToolContext
    root: Path
    notes: Notes

    async def run(self, name: str, as_call: str = "c1", **arguments: object) -> ToolResult:
        self.notes.call = as_call
        if name == "run_command":
            self.notes.calls.add(as_call)
        tool = all_tools()[name]
        return await tool.run(replace(self.context, id=as_call), parse(tool, json.dumps(arguments)))

    def write(self, path: str, content: str | bytes) -> Path:
        """As a human or a program in the container does."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        file.with_name("new~").write_bytes(data)
        return file.with_name("new~").rename(file)


def world(files: DiskFileStore, ref: ProjectRef, runtime: Runtime | None = None) -> World:
    notes = Notes()
    context = ToolContext(
        id="c1",
        ref=ref,
        files=files,
        runtime=runtime or NoRuntime(),  # type: ignore[arg-type]  # tools on files don't ask it
        notes=notes,
        output=Teller(),
        dev_server=NoDevServer(),
        preview=NoPreview(),
    )
    return World(context, files.root(ref), notes)
