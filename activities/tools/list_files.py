"""The tool `list_files`."""

from typing import ClassVar

from pydantic import BaseModel, Field

from activities.ports import FileEntry
from activities.tools.arguments import FolderPath, ToolArguments
from activities.tools.bounds import LIMIT, shown, size_text
from activities.tools.tool import Tool, ToolContext, ToolKind, ToolResult

MAX_DEPTH = 10
_NODE_MODULES = "node_modules"


class ListFilesArguments(ToolArguments):
    """A folder and how deep to look."""

    path: FolderPath = Field(default="", description="The folder, relative to the project's; default: the project.")
    depth: int = Field(default=2, ge=1, le=MAX_DEPTH, description="Levels to show; 1 is the folder's own entries.")


class ListFiles(Tool[ListFilesArguments]):
    """Shows a tree of names and sizes."""

    name: ClassVar[str] = "list_files"
    description: ClassVar[str] = (
        "List a folder of the project as a tree with file sizes. node_modules is shown as one entry; list it, or a "
        "folder in it, by its path."
    )
    kind: ClassVar[ToolKind] = ToolKind.LOOK
    arguments: ClassVar[type[BaseModel]] = ListFilesArguments

    async def run(self, context: ToolContext, arguments: ListFilesArguments) -> ToolResult:
        """See `Tool.run`."""
        listing = await context.files.entries(context.ref, arguments.path, depth=arguments.depth)
        name = arguments.path or "The project"
        if not listing.items:
            return ToolResult(f"{name} is empty.")
        above = arguments.path.count("/") + 1 if arguments.path else 0
        lines: list[str] = []
        room = LIMIT
        for entry in sorted(listing.items, key=lambda entry: entry.path.split("/")):
            line = _line(entry, above)
            room -= len(line) + 1
            if room < 0:
                break
            lines.append(line)
        missing = len(listing.items) - len(lines)
        if missing or listing.truncated:
            count = f"{missing:,}{' or more' if listing.truncated else ''}" if missing else "many"
            lines.append(f"[… {count} more entries not shown: list a folder of it, or with a smaller depth]")
        return ToolResult("\n".join(lines))


def _line(entry: FileEntry, above: int) -> str:
    parts = entry.path.split("/")
    name = "  " * (len(parts) - 1 - above) + shown(parts[-1])
    if entry.type == "file":
        return f"{name}  {size_text(entry.size)}"
    if entry.type == "symlink":
        return f"{name}  (link)"
    return f"{name}/  (not listed)" if parts[-1] == _NODE_MODULES else f"{name}/"


TOOL = ListFiles()
