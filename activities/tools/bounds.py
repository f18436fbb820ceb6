"""How much of anything a model is shown, and how it is told what it isn't shown."""

from typing import Literal

LIMIT = 16_000
"""Characters of one answer, where a tool has no reason for another bound."""

_HEAD = 4
"""One part in so many is kept from the beginning when the middle is cut: ends tell more than beginnings."""


def bounded(text: str, limit: int = LIMIT, *, cut: Literal["middle", "end"] = "middle", how: str = "") -> str:
    """The text in at most `limit` characters (at least 400), with a note where something was cut.

    The note says how many characters are missing and `how` they can be read: a short sentence for the model.
    """
    if len(text) <= limit:
        return text
    room = limit - len(_note(len(text), how))
    head = max(0, room if cut == "end" else room // _HEAD)
    tail = max(0, room - head)
    missing = len(text) - head - tail
    return text[:head] + _note(missing, how) + (text[-tail:] if tail else "")


def readable(data: bytes) -> str:
    """Bytes of a file or command as text that any database and model takes: no UTF-8, and NUL, become U+FFFD."""
    return data.decode(errors="replace").replace("\0", "\ufffd")


def shown(name: str) -> str:
    """A file's name as one word of one line, however it is written."""
    return name if name.isprintable() else ascii(name)


def size_text(size: int) -> str:
    """Bytes for people."""
    if size < 1024:  # noqa: PLR2004 -- the unit itself
        return f"{size} B"
    if size < 1024 * 1024:
        return f"{size / 1024:.1f} KiB"
    return f"{size / 1024 / 1024:.1f} MiB"


def _note(missing: int, how: str) -> str:
    return f"\n[… {missing:,} characters cut{'. ' + how if how else ''}]\n"
