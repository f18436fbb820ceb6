"""The tool `write_file`."""

from typing import ClassVar

from pydantic import BaseModel, Field

from activities.tools.arguments import ProjectPath, ToolArguments
from activities.tools.bounds import size_text
from activities.tools.file_content import changed, write_once, written_before
from activities.tools.tool import Tool, ToolContext, ToolFailure, ToolKind, ToolResult
from workflows.contracts.errors import NotFoundError

MAX_CONTENT = 1024 * 1024


class WriteFileArguments(ToolArguments):
    """A whole file."""

    path: ProjectPath = Field(description="The file, relative to the project's folder. Missing folders are made.")
    content: str = Field(description="The whole new content, at most 1 MiB.")


class WriteFile(Tool[WriteFileArguments]):
    """Writes a new file, or a known one over the version that the task has seen."""

    name: ClassVar[str] = "write_file"
    description: ClassVar[str] = (
        "Create a file, or replace one as a whole. A file that exists must have been read in this task and not have "
        "changed since. For small changes edit_file is better."
    )
    kind: ClassVar[ToolKind] = ToolKind.EDIT
    arguments: ClassVar[type[BaseModel]] = WriteFileArguments

    async def run(self, context: ToolContext, arguments: WriteFileArguments) -> ToolResult:
        """See `Tool.run`."""
        path, content = arguments.path, arguments.content.encode()
        if len(content) > MAX_CONTENT:
            raise ToolFailure(
                f"The content has {size_text(len(content))}, the limit is {size_text(MAX_CONTENT)}; nothing was "
                "written. Write a part and add to it, or have a command make the file."
            )
        done = await written_before(context, path)
        if done is not None:
            return done
        seen = await context.notes.seen_etag(path)
        try:
            current = await context.files.stat(context.ref, path)
        except NotFoundError:
            again = " It had been deleted since you saw it." if seen is not None else ""
            answer = f"Created {path}, {_measure(arguments.content, content)}.{again}"
            return await write_once(context, path, content, answer, over=None)
        if current.type != "file":
            raise ToolFailure(f"{path!r} is a folder, not a file; nothing was written.")
        if seen is None:
            raise ToolFailure(
                f"{path!r} exists and you haven't read it; nothing was written. Read it first, then change it with "
                "edit_file or replace it with write_file."
            )
        if seen != current.etag:
            raise changed(path)
        answer = f"Replaced {path}, now {_measure(arguments.content, content)}."
        return await write_once(context, path, content, answer, over=seen)

    def touches(self, arguments: WriteFileArguments) -> str | None:
        """See `Tool.touches`."""
        return arguments.path


def _measure(text: str, content: bytes) -> str:
    lines = text.count("\n") + (not text.endswith("\n") and bool(text))
    return f"{lines:,} {'line' if lines == 1 else 'lines'}, {size_text(len(content))}"


TOOL = WriteFile()
