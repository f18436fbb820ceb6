"""The tool `todo`."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, StringConstraints

from activities.tools.arguments import PlainText, ToolArguments
from activities.tools.tool import Tool, ToolContext, ToolKind, ToolResult

MAX_ITEMS = 50
MAX_TEXT = 500
_MARKS = {"pending": "[ ]", "in_progress": "[~]", "done": "[x]"}


class TodoItem(ToolArguments):
    """One thing to do."""

    text: Annotated[PlainText, StringConstraints(min_length=1, max_length=MAX_TEXT)] = Field(
        description="What is to be done."
    )
    state: Literal["pending", "in_progress", "done"] = Field(description="How it stands.")


class TodoArguments(ToolArguments):
    """The whole list."""

    items: list[TodoItem] = Field(max_length=MAX_ITEMS, description="The whole list as it is from now on, in order.")


class Todo(Tool[TodoArguments]):
    """Keeps the task's list of things to do."""

    name: ClassVar[str] = "todo"
    description: ClassVar[str] = (
        "Keep your list of things to do, for work of several parts. Each call replaces the whole list; the person who "
        "gave you the task sees it."
    )
    kind: ClassVar[ToolKind] = ToolKind.LOOK
    arguments: ClassVar[type[BaseModel]] = TodoArguments

    async def run(self, context: ToolContext, arguments: TodoArguments) -> ToolResult:
        """See `Tool.run`."""
        await context.notes.set_todo([item.model_dump() for item in arguments.items])
        if not arguments.items:
            return ToolResult("The list is empty.")
        done = sum(item.state == "done" for item in arguments.items)
        lines = [f"{_MARKS[item.state]} {item.text}" for item in arguments.items]
        return ToolResult("\n".join([*lines, f"({done} of {len(lines)} done)"]))


TOOL = Todo()
