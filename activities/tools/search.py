"""The tool `search`."""

import asyncio
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from activities.tools.arguments import MAX_PATH, FolderPath, PlainText, ToolArguments
from activities.tools.bounds import LIMIT, bounded, readable, shown
from activities.tools.ripgrep import MAX_COLUMNS, MAX_MATCHES, Match, Matches, Query, find
from activities.tools.tool import Tool, ToolContext, ToolFailure, ToolKind, ToolResult
from workflows.contracts.errors import StudioError
from workflows.contracts.names import STUDIO_DIRECTORY

SEARCH_S = 15.0
READ_S = 5.0
"""Seconds for finding lines, and then for reading them: 20 in all."""

_MAX_PATTERN = 2_000
_HOW = "Narrow the search by path or glob"


class SearchArguments(ToolArguments):
    """What to look for, and where."""

    pattern: PlainText = Field(
        min_length=1, max_length=_MAX_PATTERN, description="Regular expression (ripgrep's), matched line by line."
    )
    path: FolderPath = Field(default="", description="Folder or file to search in; default: the whole project.")
    glob: PlainText | None = Field(
        default=None, min_length=1, max_length=MAX_PATH, description="Only files like this, e.g. *.tsx or src/**/*.css."
    )
    ignore_case: bool = Field(default=False, description="Take upper and lower case for the same.")
    context_lines: int = Field(default=0, ge=0, le=10, description="Lines to show before and after each match.")


class Search(Tool[SearchArguments]):
    """Finds lines by a regular expression."""

    name: ClassVar[str] = "search"
    description: ClassVar[str] = (
        "Search the project's text files by a regular expression. Answers with file, line number and line, at most "
        f"{MAX_MATCHES} matches. Left out: node_modules, .git, .studio, binary files, files over 10 MiB, links."
    )
    kind: ClassVar[ToolKind] = ToolKind.LOOK
    arguments: ClassVar[type[BaseModel]] = SearchArguments

    async def run(self, context: ToolContext, arguments: SearchArguments) -> ToolResult:
        """See `Tool.run`."""
        root = context.files.root(context.ref)
        if arguments.path:
            if arguments.path.split("/")[0] == STUDIO_DIRECTORY:
                raise ToolFailure(f"{STUDIO_DIRECTORY}/ belongs to the service and is not searched.")
            await context.files.stat(context.ref, arguments.path)
            await asyncio.to_thread(_refuse_links, root, arguments.path)
        query = Query(arguments.pattern, arguments.path, arguments.glob, arguments.ignore_case)
        matches = await find(root, query, within_s=SEARCH_S)
        return ToolResult(await _answer(context, matches, arguments.context_lines))


def _refuse_links(root: Path, path: str) -> None:
    """Ripgrep would follow a link that it is told to search. One put there later gains nothing: see ripgrep.py."""
    place = root
    for name in path.split("/"):
        place /= name
        if place.is_symlink():
            raise ToolFailure(f"{shown(path)} leads through a link; search in the folder that it leads to.")


async def _answer(context: ToolContext, matches: Matches, context_lines: int) -> str:
    deadline = time.monotonic() + READ_S
    blocks: list[str] = []
    complete = matches.complete
    for path, group in groupby(matches.items, key=lambda match: match.path):
        if time.monotonic() > deadline:
            complete = False
            break
        try:
            content = await context.files.read(context.ref, path)
        except StudioError as error:
            if error.retryable:
                raise
            continue  # gone, or exchanged for something else, since it was searched
        lines = await asyncio.to_thread(_lines, content, list(group), context_lines)
        if lines:
            blocks.append("\n".join([shown(path), *lines]))
    if not blocks:
        return "No matches." if complete else f"No matches so far, but not everything was searched. {_HOW}."
    note = "" if complete else f"\n[… there are more matches, or the time was over. {_HOW}]"
    return bounded("\n".join(blocks), LIMIT - len(note), cut="end", how=_HOW) + note


def _lines(content: bytes, matches: Sequence[Match], around: int) -> list[str]:
    """The lines that are there as they were found, with those around them: `12:` a match, `12-` its surroundings."""
    numbers = {number for match in matches if (number := _line_number(content, match)) is not None}
    if not numbers:
        return []
    lines = content.split(b"\n")
    last = len(lines) - (not lines[-1])
    wanted = sorted({near for number in numbers for near in range(number - around, number + around + 1)})
    shown_lines: list[str] = []
    before = None
    for number in wanted:
        if not 0 <= number < last:
            continue
        if around and before is not None and number != before + 1:
            shown_lines.append("--")
        before = number
        shown_lines.append(f"{number + 1}{':' if number in numbers else '-'}{_cut(lines[number])}")
    return shown_lines


def _line_number(content: bytes, match: Match) -> int | None:
    """Counted from 0; None when the line isn't there."""
    start = match.offset
    if start > len(content) or (start and content[start - 1 : start] != b"\n"):
        return None
    end = content.find(b"\n", start)
    if not match.agrees(content[start : len(content) if end < 0 else end]):
        return None
    return content.count(b"\n", 0, start)


def _cut(line: bytes) -> str:
    text = readable(line.removesuffix(b"\r"))
    return text if len(text) <= MAX_COLUMNS else f"{text[:MAX_COLUMNS]} [… {len(text) - MAX_COLUMNS:,} more]"


TOOL = Search()
