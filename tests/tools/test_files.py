"""`read_file`, `write_file`, `edit_file` and `list_files`: what they do, what they refuse, and what a retry does."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from activities.tools.tool import ToolFailure
from tests.tools.world import DyingAfterTheWrite, DyingError, World
from workflows.contracts.errors import BadPathError, ConflictError, NotFoundError


def edit(search: str, replacement: str, **more: object) -> dict[str, object]:
    return {"search": search, "replace": replacement, **more}


async def dies_after_its_write(task: World, name: str, **arguments: Any) -> None:
    """One attempt whose worker dies between the write and its note."""
    dying = DyingAfterTheWrite(task.notes.etags, task.notes.intents)
    with pytest.raises(DyingError):
        await World(replace(task.context, notes=dying), task.root, dying).run(name, **arguments)


# --- read_file ---


async def test_reading_numbers_the_lines(task: World) -> None:
    task.write("a.txt", "one\n\ttwo\r\n\nfour")
    text = (await task.run("read_file", path="./a.txt")).text
    head, *lines = text.split("\n")
    assert lines == ["     1\tone", "     2\t\ttwo", "     3\t", "     4\tfour"]
    assert (
        head
        == "[a.txt: lines 1 to 4 of 4; line breaks are CRLF, edit_file takes care of them; no line break at the end]"
    )


async def test_reading_a_range(task: World) -> None:
    task.write("a.txt", "".join(f"{n}\n" for n in range(1, 5001)))
    part = (await task.run("read_file", path="a.txt", start_line=10, end_line=11)).text
    assert part == "[a.txt: lines 10 to 11 of 5,000]\n    10\t10\n    11\t11"
    first = (await task.run("read_file", path="a.txt")).text
    assert first.startswith("[a.txt: lines 1 to 2,000 of 5,000; there is more: read on with start_line=2001]\n")
    assert first.endswith("\n  2000\t2000")
    assert "lines 4,999 to 5,000 of 5,000]" in (await task.run("read_file", path="a.txt", start_line=4999)).text
    assert "lines 4,999 to 5,000 of" in (await task.run("read_file", path="a.txt", start_line=4999, end_line=9999)).text
    with pytest.raises(ToolFailure, match="5,000 lines; there is no line 5,001"):
        await task.run("read_file", path="a.txt", start_line=5001)
    with pytest.raises(ToolFailure, match="before start_line"):
        await task.run("read_file", path="a.txt", start_line=3, end_line=2)


async def test_reading_is_bounded_in_bytes_and_in_a_lines_length(task: World) -> None:
    task.write("a.txt", "é" * 1990 + "\n" + ("x" * 1500 + "\n") * 100 + "y" * 5000 + "\n")
    text = (await task.run("read_file", path="a.txt")).text
    assert len(text.encode()) < 65 * 1024
    assert "lines 1 to 41 of 102; there is more: read on with start_line=42" in text
    assert "[… 3,000 more characters" in (await task.run("read_file", path="a.txt", start_line=102)).text


async def test_what_is_no_text_is_refused_or_said(task: World) -> None:
    task.write("i.png", b"\x89PNG\r\n\x00\x01")
    task.write("latin.txt", b"caf\xe9\n")
    task.write("bom.txt", b"\xef\xbb\xbfx\n")
    task.write("empty.txt", "")
    task.write("big.log", b"x" * (10 * 1024 * 1024 + 1))
    with pytest.raises(ToolFailure, match=r"binary file \(PNG image, 8 B\)"):
        await task.run("read_file", path="i.png")
    with pytest.raises(ToolFailure, match=r"10\.0 MiB.*search"):
        await task.run("read_file", path="big.log")
    assert "not UTF-8" in (await task.run("read_file", path="latin.txt")).text
    assert (await task.run("read_file", path="bom.txt")).text.endswith("\n     1\tx")
    assert (await task.run("read_file", path="empty.txt")).text == "empty.txt is empty."
    with pytest.raises(NotFoundError):
        await task.run("read_file", path="missing.txt")
    with pytest.raises(BadPathError):
        await task.run("read_file", path="../x")


# --- write_file ---


async def test_a_new_file_is_written_and_known(task: World) -> None:
    result = await task.run("write_file", path="src/new.txt", content="a\nb")
    assert (task.root / "src/new.txt").read_text() == "a\nb"
    assert result.text == "Created src/new.txt, 2 lines, 3 B."
    again = await task.run("write_file", as_call="c2", path="src/new.txt", content="c\n")
    assert again.text == "Replaced src/new.txt, now 1 line, 2 B."
    await task.run("edit_file", as_call="c3", path="src/new.txt", edits=[edit("c", "d")])
    told = [("src/new.txt", op) for op in ("created", "modified", "modified")]
    assert [(change.path, change.op) for change in task.notes.told] == told


async def test_what_the_task_has_not_seen_is_not_overwritten(task: World) -> None:
    file = task.write("a.txt", "theirs")
    with pytest.raises(ToolFailure, match="haven't read it"):
        await task.run("write_file", path="a.txt", content="mine")
    await task.run("read_file", path="a.txt")
    task.write("a.txt", "theirs, later")
    with pytest.raises(ToolFailure, match="has changed since you read it"):
        await task.run("write_file", path="a.txt", content="mine")
    assert file.read_text() == "theirs, later"
    await task.run("read_file", path="a.txt")
    await task.run("write_file", as_call="c2", path="a.txt", content="mine")
    file.unlink()
    assert "had been deleted" in (await task.run("write_file", as_call="c3", path="a.txt", content="mine")).text


@pytest.mark.parametrize("known", [True, False])
async def test_a_write_that_comes_between_is_not_overwritten(task: World, known: bool) -> None:
    if known:
        task.write("a.txt", "old")
        await task.run("read_file", path="a.txt")
    note = task.notes.note_intent

    async def noted_while_somebody_writes(intent: dict[str, object]) -> None:
        await note(intent)
        task.write("a.txt", "theirs")

    task.notes.note_intent = noted_while_somebody_writes  # type: ignore[method-assign, assignment]  # a slow database
    with pytest.raises(ToolFailure, match="has changed since"):
        await task.run("write_file", path="a.txt", content="mine")
    assert (task.root / "a.txt").read_text() == "theirs"


async def test_what_can_not_be_written_is_refused(task: World) -> None:
    (task.root / "folder").mkdir()
    with pytest.raises(ToolFailure, match="is a folder"):
        await task.run("write_file", path="folder", content="")
    with pytest.raises(ToolFailure, match=r"limit is 1\.0 MiB"):
        await task.run("write_file", path="a.txt", content="é" * 600_000)
    with pytest.raises(BadPathError):
        await task.run("write_file", path=".studio/x", content="")
    with pytest.raises(BadPathError):
        await task.run("write_file", path="/etc/x", content="")
    with pytest.raises(ToolFailure, match="zero byte"):
        await task.run("write_file", path="a\0b", content="")
    assert [entry.name for entry in task.root.iterdir() if entry.name != ".studio"] == ["folder"]


@pytest.mark.parametrize("known", [True, False])
async def test_a_write_is_done_once_whenever_its_worker_dies(task: World, known: bool) -> None:
    if known:
        task.write("a.txt", "old")
        await task.run("read_file", path="a.txt")
    await dies_after_its_write(task, "write_file", path="a.txt", content="mine")
    inode = (task.root / "a.txt").stat().st_ino
    result = await task.run("write_file", path="a.txt", content="mine")
    assert [change.op for change in task.notes.told] == ["modified" if known else "created"]
    assert result.text.startswith("Replaced" if known else "Created")
    assert (task.root / "a.txt").stat().st_ino == inode, "it was written again"
    assert task.notes.etags["a.txt"] == task.notes.told[0].etag
    await task.run("edit_file", as_call="c2", path="a.txt", edits=[edit("mine", "ours")])
    assert (task.root / "a.txt").read_text() == "ours"


async def test_a_human_who_comes_before_the_retry_is_not_overwritten(task: World) -> None:
    await dies_after_its_write(task, "write_file", path="a.txt", content="mine")
    task.write("a.txt", "mine, corrected")
    with pytest.raises(ToolFailure, match="haven't read it"):
        await task.run("write_file", path="a.txt", content="mine")
    assert (task.root / "a.txt").read_text() == "mine, corrected"


async def test_two_attempts_at_once_both_succeed(task: World) -> None:
    results = await asyncio.gather(*(task.run("write_file", path="a.txt", content="mine") for _ in range(4)))
    assert {result.text for result in results} == {"Created a.txt, 1 line, 4 B."}
    assert (task.root / "a.txt").read_text() == "mine"


# --- edit_file ---


async def test_edits_are_applied_in_order_and_shown(task: World) -> None:
    task.write("a.js", "".join(f"line {n}\n" for n in range(1, 21)))
    await task.run("read_file", path="a.js", start_line=9, end_line=11)
    result = await task.run("edit_file", path="a.js", edits=[edit("line 10\n", "ten\n10\n"), edit("ten", "TEN")])
    assert result.text == ("Edited a.js:\n@@ -8,5 +8,6 @@\n line 8\n line 9\n-line 10\n+TEN\n+10\n line 11\n line 12")
    assert "line 9\nTEN\n10\nline 11\n" in (task.root / "a.js").read_text()
    assert [change.op for change in task.notes.told] == ["modified"]
    await task.run("edit_file", as_call="c2", path="a.js", edits=[edit("line", "row", replace_all=True)])
    assert "line" not in (task.root / "a.js").read_text()


async def test_nothing_is_written_when_one_edit_fails(task: World) -> None:
    file = task.write("a.js", "one\n  two\nthree\ntwo\n")
    await task.run("read_file", path="a.js")
    for edits, said in (
        ([edit("one", "1"), edit("four", "4")], "Edit 2 of 2 .*nothing was written: .*not in the file"),
        ([edit("two", "2")], "more than once, at lines 2, 4"),
        ([edit("one\ntwo", "x")], "differs from it in white space only: 'one'"),
        ([edit("one\n  two\nfree", "x")], "begins like line 1, but line 3 is 'three'"),
        ([edit("threee", "x")], "nearest is line 3: 'three'"),
        ([edit("two\nfive", "x")], "begins like line 4, but the file ends|begins like line 2, but line 3 is"),
        ([edit("", "x")], "is empty"),
        ([edit("one", "one")], "are the same"),
        ([edit("one", "x"), edit("x", "one")], "together change nothing"),
    ):
        with pytest.raises(ToolFailure, match=said):
            await task.run("edit_file", path="a.js", edits=edits)
    assert file.read_text() == "one\n  two\nthree\ntwo\n"
    assert not task.notes.intents


async def test_line_breaks_and_byte_order_mark_stay(task: World) -> None:
    file = task.write("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\nthree\r\n")
    await task.run("read_file", path="a.txt")
    result = await task.run("edit_file", path="a.txt", edits=[edit("one\ntwo", "1\n2\n3"), edit("three", "x\ny")])
    assert file.read_bytes() == b"\xef\xbb\xbf1\r\n2\r\n3\r\nx\r\ny\r\n"
    assert "\r" not in result.text


async def test_only_what_was_read_is_edited(task: World) -> None:
    file = task.write("a.txt", "one\n")
    with pytest.raises(ToolFailure, match="haven't read"):
        await task.run("edit_file", path="a.txt", edits=[edit("one", "two")])
    await task.run("read_file", path="a.txt")
    task.write("a.txt", "one\ntheirs\n")
    with pytest.raises(ToolFailure, match="has changed since you read it"):
        await task.run("edit_file", path="a.txt", edits=[edit("one", "two")])
    assert file.read_text() == "one\ntheirs\n"
    with pytest.raises(NotFoundError):
        await task.run("edit_file", path="missing", edits=[edit("one", "two")])
    (task.root / "folder").mkdir()
    with pytest.raises(ConflictError):
        await task.run("edit_file", path="folder", edits=[edit("one", "two")])
    task.write("latin.txt", b"caf\xe9\n")
    await task.run("read_file", path="latin.txt")
    with pytest.raises(ToolFailure, match="not UTF-8"):
        await task.run("edit_file", path="latin.txt", edits=[edit("caf", "tea")])


async def test_an_edit_is_applied_once_whenever_its_worker_dies(task: World) -> None:
    task.write("a.txt", "x\n")
    await task.run("read_file", path="a.txt")
    await dies_after_its_write(task, "edit_file", path="a.txt", edits=[edit("x", "xx")])
    result = await task.run("edit_file", path="a.txt", edits=[edit("x", "xx")])
    assert (task.root / "a.txt").read_text() == "xx\n"
    assert result.text == "Edited a.txt:\n@@ -1,2 +1,2 @@\n-x\n+xx\n "
    assert [change.op for change in task.notes.told] == ["modified"]
    assert (await task.run("edit_file", path="a.txt", edits=[edit("x", "xx")])).text == result.text
    assert (task.root / "a.txt").read_text() == "xx\n"
    task.write("a.txt", "theirs x\n")
    with pytest.raises(ToolFailure, match="has changed since"):
        await task.run("edit_file", path="a.txt", edits=[edit("x", "xx")])


async def test_a_file_behind_a_link_is_one_file(task: World) -> None:
    task.write("a.txt", "one\n")
    (task.root / "link").symlink_to("a.txt")
    (task.root / "out").symlink_to("/etc/hostname")
    await task.run("read_file", path="link")
    await task.run("edit_file", path="link", edits=[edit("one", "two")])
    await task.run("edit_file", as_call="c2", path="a.txt", edits=[edit("two", "three")])
    assert [change.path for change in task.notes.told] == ["a.txt", "a.txt"]
    for name, more in (("read_file", {}), ("write_file", {"content": ""}), ("edit_file", {"edits": [edit("a", "b")]})):
        with pytest.raises(BadPathError):
            await task.run(name, path="out", **more)


# --- list_files ---


async def test_the_tree_is_shown_with_sizes(task: World) -> None:
    for name in ("src/a-b.txt", "src/a/x.txt", "src/a/deep/y.txt", "node_modules/react/index.js", "[...slug].tsx"):
        task.write(name, "x" * 2048)
    task.write("src/b\nc.txt", "x")
    (task.root / "link").symlink_to("src")
    text = (await task.run("list_files")).text
    assert text.split("\n") == [
        "[...slug].tsx  2.0 KiB",
        "link  (link)",
        "node_modules/  (not listed)",
        "src/",
        "  a/",
        "  a-b.txt  2.0 KiB",
        "  'b\\nc.txt'  1 B",
    ]
    assert (await task.run("list_files", path="./src/a/", depth=1)).text == "deep/\nx.txt  2.0 KiB"
    assert (await task.run("list_files", path="node_modules", depth=3)).text.startswith("react/\n  index.js")
    assert (await task.run("list_files", path=".")).text == text


async def test_a_long_tree_is_cut_and_says_so(task: World) -> None:
    for n in range(700):
        (task.root / f"a file with a long name, number {n:04}").touch()
    text = (await task.run("list_files")).text
    assert len(text) < 16_200
    shown = text.count("number")
    assert 300 < shown < 700
    assert f"[… {700 - shown} more entries not shown" in text


async def test_folders_that_are_not_there_or_empty(task: World) -> None:
    (task.root / "empty").mkdir()
    assert (await task.run("list_files", path="empty")).text == "empty is empty."
    with pytest.raises(NotFoundError):
        await task.run("list_files", path="missing")
    for bad in ("..", "/", "a/../.."):
        with pytest.raises(BadPathError):
            await task.run("list_files", path=bad)


# --- todo ---


async def test_the_list_is_replaced(task: World) -> None:
    items = [{"text": "Read", "state": "done"}, {"text": "Write", "state": "in_progress"}]
    assert (await task.run("todo", items=items)).text == "[x] Read\n[~] Write\n(1 of 2 done)"
    assert task.notes.items == items
    assert (await task.run("todo", items=[])).text == "The list is empty."
    for bad in ([{"text": "", "state": "done"}], [{"text": "a", "state": "lost"}], [items[0]] * 51):
        with pytest.raises(ToolFailure):
            await task.run("todo", items=bad)
    assert task.notes.items == []
