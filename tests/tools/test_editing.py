from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from activities.tools.editing import apply_edits, short_diff
from activities.tools.tool import ToolFailure


@dataclass(frozen=True)
class Edit:
    search: str
    replace: str
    replace_all: bool = False


LINES = st.lists(st.text("ab {é\u2028\x0c", max_size=6), max_size=12)
WORD = st.text("ab {é\n", min_size=1, max_size=4)


@settings(deadline=None, database=None)
@given(LINES, WORD, WORD, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_an_edit_is_a_replacement_or_refused(
    lines: list[str], search: str, replacement: str, line_break: str, mark: bool, every: bool
) -> None:
    plain = "\n".join(lines)
    assume(search != replacement)
    text = ("\ufeff" if mark else "") + plain.replace("\n", line_break)
    places = sum(plain.startswith(search, place) for place in range(len(plain)))
    edits = [Edit(search, replacement, every)]
    if places == 0 or (places > 1 and not every):
        with pytest.raises(ToolFailure, match="not in the file" if places == 0 else "more than once"):
            apply_edits(text, edits)
        return
    wanted = plain.replace(search, replacement)
    has_breaks = line_break in text
    assume(wanted != plain)
    result = apply_edits(text, edits)
    assert result == ("\ufeff" if mark else "") + (wanted.replace("\n", line_break) if has_breaks else wanted)


@settings(deadline=None, database=None)
@given(st.text("abc\n", min_size=1, max_size=30), st.data())
def test_edits_can_be_taken_back(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    forth = Edit(text[start:end], "<new>")
    assume(text.count(forth.search) == 1 and text.find(forth.search, text.find(forth.search) + 1) < 0)
    changed = apply_edits(text, [forth])
    assert apply_edits(changed, [Edit("<new>", forth.search)]) == text


def test_mixed_line_breaks_are_taken_as_they_are_first() -> None:
    assert apply_edits("a\r\nb\nc\nd", [Edit("b\nc", "x\ny")]) == "a\r\nx\ny\nd"
    assert apply_edits("a\r\nb\nc\nd", [Edit("a\nb", "x\ny")]) == "x\r\ny\nc\nd"
    assert apply_edits("a\nb", [Edit("a", "a\r\nx")]) == "a\r\nx\nb"


def test_places_that_overlap_are_two() -> None:
    with pytest.raises(ToolFailure, match="at lines 1, 2"):
        apply_edits("a\na\na", [Edit("a\na", "b")])


def test_what_would_grow_without_end_is_refused() -> None:
    with pytest.raises(ToolFailure, match="larger than 10 MiB"):
        apply_edits("a" * 100_000, [Edit("a", "b" * 100_000, replace_all=True)])
    many = "x\n" * 100_000
    with pytest.raises(ToolFailure, match=r"lines 1, 2, .* 10 and more"):
        apply_edits(many, [Edit("x", "y")])


def test_a_diff_is_bounded() -> None:
    before = "".join(f"{n}\n" for n in range(100_000))
    assert len(short_diff(before, before.replace("5", "five"))) < 4_100
    assert (
        short_diff(before, before.replace("\n50\n", "\nfifty\n"))
        == "@@ -49,5 +49,5 @@\n 48\n 49\n-50\n+fifty\n 51\n 52"
    )
    assert "lines became" in short_diff(before, before.replace("9", "nine"))
    assert len(short_diff("a", "b" * 100_000)) < 4_100
