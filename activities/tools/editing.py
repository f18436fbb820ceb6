"""Search and replace in a text, exactly or not at all. Pure, but not for the event loop: long texts take their time."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from activities.tools.bounds import bounded
from activities.tools.tool import ToolFailure

MAX_LENGTH = 10 * 1024 * 1024
"""Characters that a text may come to have."""

_BOM = "\ufeff"
_CONTEXT = 2
_DIFF_SHOWN = 4_000
_DIFF_LINES = 2_000
"""Lines that are compared, old and new ones together: comparing takes the square of their number at worst."""

_TOLD_LINES = 10
_SEARCHED_LINES = 10_000
_COMPARED = 160
_ALIKE = 0.5
_STARTS = 50
_HUNK = re.compile(r"@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@")


class Edit(Protocol):
    """One replacement. `search` must occur once; with `replace_all` at least once."""

    @property
    def search(self) -> str:
        """The text to find, exactly."""

    @property
    def replace(self) -> str:
        """What stands there afterwards."""

    @property
    def replace_all(self) -> bool:
        """Whether all places are meant."""


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """The text after all edits, each applied to what the one before it has left. Byte order mark and line breaks stay.

    Where every line break is CRLF, the edits' breaks are taken for CRLF, however they are written; where they are
    mixed, only when an edit isn't found as it is written. Raises `ToolFailure` for the first edit that can't be done.
    """
    mark = _BOM if text.startswith(_BOM) else ""
    result = text.removeprefix(_BOM)
    for number, edit in enumerate(edits, 1):
        result = _apply(result, edit, f"Edit {number} of {len(edits)}")
    if mark + result == text:
        raise ToolFailure("The edits together change nothing; nothing was written.")
    return mark + result


def _apply(text: str, edit: Edit, name: str) -> str:
    search, replace = edit.search, edit.replace
    if not search:
        raise _failure(name, "its search text is empty")
    if search == replace:
        raise _failure(name, "search and replace are the same")
    search, replace = _in_breaks_of(text, search, replace)
    places = list(_places(text, search))
    if not places:
        raise _failure(name, f"its search text is not in the file. {_nearest(text, edit.search)}")
    if len(places) > 1 and not edit.replace_all:
        lines = ", ".join(str(text.count("\n", 0, place) + 1) for place in places[:_TOLD_LINES])
        more = " and more" if len(places) > _TOLD_LINES else ""
        raise _failure(
            name,
            f"its search text occurs more than once, at lines {lines}{more}. Add lines around it until it is unique, "
            "or set replace_all",
        )
    if len(text) + text.count(search) * (len(replace) - len(search)) > MAX_LENGTH:
        raise _failure(name, f"the file would become larger than {MAX_LENGTH // 1024 // 1024} MiB")
    return text.replace(search, replace)


def _in_breaks_of(text: str, search: str, replace: str) -> tuple[str, str]:
    crlf = text.count("\r\n")
    if not crlf or (crlf != text.count("\n") and search in text):
        return search, replace
    return _crlf(search), _crlf(replace)


def _crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def _places(text: str, search: str) -> Iterator[int]:
    """Where it occurs, places that overlap too; one more than are told."""
    place = text.find(search)
    for _ in range(_TOLD_LINES + 1):
        if place < 0:
            return
        yield place
        place = text.find(search, place + 1)


def _failure(name: str, reason: str) -> ToolFailure:
    return ToolFailure(f"{name} can't be done, nothing was written: {reason}.")


# --- Hints ------------------------------------------------------------------------------------------------------


def _nearest(text: str, search: str) -> str:
    """What of the file is most like the text that wasn't found."""
    wanted = [line.strip() for line in search.strip().splitlines()] or [""]
    lines = text.split("\n")
    plain = [line.strip() for line in lines]
    starts = [number for number, line in enumerate(plain) if wanted[0] and line == wanted[0]][:_STARTS]
    if starts:
        start = max(starts, key=lambda number: _common(plain[number:], wanted))
        return _first_difference(lines, start, wanted, _common(plain[start:], wanted))
    pairs = _pairs(wanted[0])
    likeness = [_likeness(pairs, _pairs(line)) for line in plain[:_SEARCHED_LINES]]
    best = max(likeness)
    if best < _ALIKE:
        return "No line is like it; read the file again"
    number = likeness.index(best)
    return f"The nearest is line {number + 1}: {_quoted(lines[number])}"


def _pairs(line: str) -> set[str]:
    """The pairs of neighbouring characters: compared in a time that grows with the text, not with its square."""
    return {line[place : place + 2] for place in range(min(len(line), _COMPARED) - 1)}


def _likeness(one: set[str], other: set[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other) or 1)


def _common(lines: Sequence[str], wanted: Sequence[str]) -> int:
    return next((n for n, (one, other) in enumerate(zip(lines, wanted, strict=False)) if one != other), len(wanted))


def _first_difference(lines: Sequence[str], start: int, wanted: Sequence[str], same: int) -> str:
    place = start + same
    if same == len(wanted):
        return f"Line {start + 1} differs from it in white space only: {_quoted(lines[start])}"
    if place >= len(lines):
        return f"It begins like line {start + 1}, but the file ends before it does"
    return f"It begins like line {start + 1}, but line {place + 1} is {_quoted(lines[place])}"


def _quoted(line: str) -> str:
    return repr(line.rstrip("\r")[:_COMPARED])


def short_diff(before: str, after: str) -> str:
    """What has changed, as a unified diff without its head, bounded."""
    old, new = _lines(before), _lines(after)
    most = min(len(old), len(new))
    start = next((n for n in range(most) if old[n] != new[n]), most)
    most -= start
    end = next((n for n in range(most) if old[-1 - n] != new[-1 - n]), most)
    if len(old) + len(new) - 2 * (start + end) > _DIFF_LINES:
        return f"From line {start + 1}, {len(old) - start - end:,} lines became {len(new) - start - end:,}."
    first, rest = max(0, start - _CONTEXT), max(0, end - _CONTEXT)
    hunks = difflib.unified_diff(old[first : len(old) - rest], new[first : len(new) - rest], n=_CONTEXT, lineterm="")
    lines = [_HUNK.sub(lambda match: _moved(match, first), line) for line in list(hunks)[2:]]
    return bounded("\n".join(lines), _DIFF_SHOWN, how="Read the file to see all")


def _lines(text: str) -> list[str]:
    return text.replace("\0", "\ufffd").replace("\r\n", "\n").split("\n")


def _moved(match: re.Match[str], by: int) -> str:
    old, old_count, new, new_count = match.groups(default="")
    return f"@@ -{int(old) + by}{old_count} +{int(new) + by}{new_count} @@"
