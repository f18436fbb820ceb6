"""The tool `read_file`."""

import asyncio
from typing import ClassVar

from pydantic import BaseModel, Field

from activities.tools.arguments import ProjectPath, ToolArguments
from activities.tools.bounds import readable, size_text
from activities.tools.file_content import FileContent, load
from activities.tools.tool import Tool, ToolContext, ToolFailure, ToolKind, ToolResult

MAX_LINES = 2_000
MAX_BYTES = 64 * 1024
MAX_LINE = 2_000
_BOM = b"\xef\xbb\xbf"


class ReadFileArguments(ToolArguments):
    """A range of lines, both ends included, counted from 1."""

    path: ProjectPath = Field(description="The file, relative to the project's folder, e.g. src/App.jsx.")
    start_line: int = Field(default=1, ge=1, description="First line to show, counted from 1.")
    end_line: int | None = Field(
        default=None, ge=1, description=f"Last line to show. Default: as far as {MAX_LINES:,} lines and 64 KiB reach."
    )


class ReadFile(Tool[ReadFileArguments]):
    """Shows a text file's lines with their numbers, and notes which version the task has seen."""

    name: ClassVar[str] = "read_file"
    description: ClassVar[str] = (
        "Read a text file of the project. Each line comes as its number, a tab and its text. At most 2,000 lines or "
        "64 KiB at once; read on with start_line. A file must be read before it can be edited or overwritten."
    )
    kind: ClassVar[ToolKind] = ToolKind.LOOK
    arguments: ClassVar[type[BaseModel]] = ReadFileArguments

    async def run(self, context: ToolContext, arguments: ReadFileArguments) -> ToolResult:
        """See `Tool.run`."""
        path, start, end = arguments.path, arguments.start_line, arguments.end_line
        if end is not None and end < start:
            raise ToolFailure(f"end_line {end} comes before start_line {start}.")
        file = await load(context, path)
        text = await asyncio.to_thread(_text, path, file, start, end)
        await context.notes.note_etag(path, file.etag)
        return ToolResult(text)


def _text(path: str, file: FileContent, start: int, end: int | None) -> str:
    if file.binary:
        size = size_text(len(file.data))
        raise ToolFailure(f"{path!r} is a binary file ({_type_of(file.data)}, {size}); only text can be read.")
    lines = _lines(file.data)
    if start > max(1, len(lines)):
        raise ToolFailure(f"{path!r} has {len(lines):,} lines; there is no line {start:,}.")
    return _page(path, file, lines, start, end) if lines else f"{path} is empty."


def _lines(data: bytes) -> list[bytes]:
    """Lines as editors count them; what follows the last line break is one only when it isn't empty."""
    lines = data.removeprefix(_BOM).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _page(path: str, file: FileContent, lines: list[bytes], start: int, end: int | None) -> str:
    shown: list[str] = []
    size = 0
    for number, line in enumerate(lines[start - 1 : end][:MAX_LINES], start):
        text = f"{number:6}\t{_line(line)}"
        size += len(text.encode()) + 1
        if size > MAX_BYTES and shown:
            break
        shown.append(text)
    last = start + len(shown) - 1
    notes = [f"lines {start:,} to {last:,} of {len(lines):,}", *_peculiarities(file.data, ends=last == len(lines))]
    wanted = len(lines) if end is None else min(end, len(lines))
    if last < wanted:
        notes.append(f"there is more: read on with start_line={last + 1}")
    return f"[{path}: {'; '.join(notes)}]\n" + "\n".join(shown)


def _line(line: bytes) -> str:
    text = readable(line.removesuffix(b"\r"))
    if len(text) <= MAX_LINE:
        return text
    return f"{text[:MAX_LINE]} [… {len(text) - MAX_LINE:,} more characters in this line: run_command with cut -c]"


def _peculiarities(data: bytes, *, ends: bool) -> list[str]:
    found = []
    if b"\r\n" in data:
        found.append("line breaks are CRLF, edit_file takes care of them")
    if ends and not data.endswith(b"\n"):
        found.append("no line break at the end")
    try:
        data.decode()
    except UnicodeDecodeError:
        found.append("not UTF-8: some characters are shown as \ufffd, and edit_file can't be used")
    return found


def _type_of(data: bytes) -> str:
    return next((name for magic, name in _MAGIC if data.startswith(magic)), "unknown type")


_MAGIC = (
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"RIFF", "RIFF: WebP image, WAV or AVI"),
    (b"\x00\x00\x01\x00", "icon"),
    (b"%PDF", "PDF document"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x7fELF", "ELF program"),
    (b"\x00asm", "WebAssembly"),
    (b"wOF2", "WOFF2 font"),
    (b"wOFF", "WOFF font"),
    (b"\x00\x01\x00\x00", "TrueType font"),
    (b"SQLite format 3", "SQLite database"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
)

TOOL = ReadFile()
