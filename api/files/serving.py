"""How a file's bytes go out: type, range, conditions, and never as a page of this origin."""

import mimetypes
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from activities.ports import FileEntry, OpenFile
from api.errors import ProblemAnswer

_RANGE = re.compile(r"bytes=\s*(\d*)\s*-\s*(\d*)\s*", re.IGNORECASE)
_LONGEST_NUMBER = 18
_TEXT = "text/plain"
_TYPES = {
    # Sources that the system's table doesn't know, or takes for something else (.ts for a video).
    **dict.fromkeys((".ts", ".tsx", ".jsx", ".mts", ".cts", ".vue", ".svelte", ".py", ".sh", ".toml", ".lock"), _TEXT),
    **dict.fromkeys(
        (".yaml", ".yml", ".ini", ".cfg", ".env", ".gitignore", ".txt", ".log", ".sql", ".rs", ".go"), _TEXT
    ),
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".cjs": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".css": "text/css",
    ".html": "text/html",
    ".htm": "text/html",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".webp": "image/webp",
    ".wasm": "application/wasm",
}
_INLINE = re.compile(
    r"(image/(?!svg)|audio/|video/|font/).*|text/(plain|css|csv|markdown)|application/json", re.IGNORECASE
)
_ISOLATED = "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'"


@dataclass(frozen=True)
class ByteRange:
    """A part of a file, `[start, end)`."""

    start: int
    end: int


def content_type(path: str) -> str:
    """The type by the name's ending; bytes are never looked at."""
    name = path.rpartition("/")[2].lower()
    ending = f".{name.rpartition('.')[2]}" if "." in name else ""
    kind = _TYPES.get(ending) or mimetypes.guess_type(f"x{ending}", strict=False)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def headers_of(entry: FileEntry) -> dict[str, str]:
    """The headers of every answer about the file.

    A project's own HTML or SVG is a download here: run in this origin it could act for whoever looks at it.
    """
    kind = content_type(entry.path)
    way = "inline" if _INLINE.fullmatch(kind.partition(";")[0]) else "attachment"
    name = quote(entry.path.rpartition("/")[2], safe="")
    return {
        "Content-Type": kind,
        "Content-Disposition": f"{way}; filename*=UTF-8''{name}",
        "Content-Security-Policy": _ISOLATED,
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
        "ETag": f'"{entry.etag}"',
        "Last-Modified": entry.modified_at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
    }


def not_modified(entry: FileEntry, if_none_match: str | None) -> bool:
    """Whether the client has the file as it is (RFC 9110: weakly compared)."""
    if if_none_match is None:
        return False
    known = {etag.strip().removeprefix("W/").strip('"') for etag in if_none_match.split(",")}
    return "*" in known or entry.etag in known


def wanted_range(entry: FileEntry, value: str | None, if_range: str | None) -> ByteRange | None:
    """The one range that is asked for; None: the whole file (none, several, or one for another version).

    Raises `ValueError` when the file has none of it: 416.
    """
    match = _RANGE.fullmatch(value or "")
    if match is None or (if_range is not None and if_range.strip().strip('"') != entry.etag):
        return None
    first, last = match[1][:_LONGEST_NUMBER], match[2][:_LONGEST_NUMBER]
    if not first:
        if not last:
            return None
        start, end = max(0, entry.size - int(last)), entry.size
    else:
        start, end = int(first), min(entry.size, int(last) + 1) if last else entry.size
        if last and int(last) < start:
            return None  # not a range at all: ignored, as RFC 9110 says
    if start >= end:
        raise ValueError(value)
    return ByteRange(start, end)


def unsatisfiable(entry: FileEntry) -> Response:
    """The 416."""
    detail = f"The file has {entry.size} bytes; the range lies outside."
    headers = {"Content-Range": f"bytes */{entry.size}"}
    return ProblemAnswer(416, "range_not_satisfiable", detail, headers=headers).response()


class ClosingResponse(StreamingResponse):
    """Streams, and gives back what it streams from also when the client goes away before the first byte."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        status_code: int,
        headers: Mapping[str, str],
        file: OpenFile | None = None,
    ) -> None:
        super().__init__(pieces, status_code, headers)
        self._pieces = pieces
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()
            if self._file is not None:
                await self._file.close()


async def pieces_of(file: OpenFile, part: ByteRange) -> AsyncGenerator[bytes, None]:
    """The bytes of the part."""
    async for piece in file.chunks(part.start, part.end):
        yield piece
