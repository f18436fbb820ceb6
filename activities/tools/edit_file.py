"""The tool `edit_file`."""

from typing import ClassVar

from pydantic import BaseModel, Field

from activities.files.threads import BlockingPool
from activities.tools.arguments import ProjectPath, ToolArguments
from activities.tools.editing import apply_edits, short_diff
from activities.tools.file_content import changed, load, write_once, written_before
from activities.tools.tool import Tool, ToolContext, ToolFailure, ToolKind, ToolResult

MAX_EDITS = 50
MAX_TEXT = 256 * 1024

_pool = BlockingPool("edits", 2)


class EditArguments(ToolArguments):
    """One replacement."""

    search: str = Field(
        max_length=MAX_TEXT,
        description="The text to find, exactly as it is in the file, white space included and without line numbers.",
    )
    replace: str = Field(max_length=MAX_TEXT, description="What stands there afterwards; empty to delete.")
    replace_all: bool = Field(
        default=False, description="Replace every occurrence; otherwise there must be exactly one."
    )


class EditFileArguments(ToolArguments):
    """Replacements in one file."""

    path: ProjectPath = Field(description="The file, relative to the project's folder. It must have been read.")
    edits: list[EditArguments] = Field(
        min_length=1,
        max_length=MAX_EDITS,
        description="Applied in this order, each to what the one before it has left: all of them or none.",
    )


class EditFile(Tool[EditFileArguments]):
    """Replaces exact texts in a file, over the version that the task has seen."""

    name: ClassVar[str] = "edit_file"
    description: ClassVar[str] = (
        "Change a text file by exact search and replace, several in one call. Fails, with nothing written, when a "
        "search text is not found or not unique, or when the file has changed since you read it. Answers with a diff."
    )
    kind: ClassVar[ToolKind] = ToolKind.EDIT
    arguments: ClassVar[type[BaseModel]] = EditFileArguments

    async def run(self, context: ToolContext, arguments: EditFileArguments) -> ToolResult:
        """See `Tool.run`."""
        path = arguments.path
        done = await written_before(context, path)
        if done is not None:
            return done
        seen = await context.notes.seen_etag(path)
        file = await load(context, path)
        if seen is None:
            raise ToolFailure(f"You haven't read {path!r} in this task; nothing was written. Read it first.")
        if seen != file.etag:
            raise changed(path)
        content, diff = await _pool.run(lambda: _edited(path, file.data, arguments.edits))
        return await write_once(context, path, content, f"Edited {path}:\n{diff}", over=seen)

    def touches(self, arguments: EditFileArguments) -> str | None:
        """See `Tool.touches`."""
        return arguments.path


def _edited(path: str, data: bytes, edits: list[EditArguments]) -> tuple[bytes, str]:
    try:
        before = data.decode()
    except UnicodeDecodeError:
        raise ToolFailure(f"{path!r} is not UTF-8 text; edit_file can't change it. Use run_command.") from None
    after = apply_edits(before, edits)
    return after.encode(), short_diff(before, after)


TOOL = EditFile()
