import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from activities.tools.ripgrep import Match
from activities.tools.search import _lines
from activities.tools.tool import ToolFailure
from tests.runtimes.waiting import until
from tests.tools.world import World
from workflows.contracts.errors import BadPathError, NotFoundError

SECRET = "SECRET_OF_THE_HOST"


async def search(task: World, pattern: str, **more: Any) -> list[str]:
    return (await task.run("search", pattern=pattern, **more)).text.split("\n")


async def test_lines_are_found_with_their_numbers(task: World) -> None:
    task.write("src/a.js", "one\ntwo\nThree\n")
    task.write("src/b.css", "two {}\r\n")
    task.write("-x/é [1].txt", "x\n\nit is two\n")
    assert await search(task, "^two|is two$") == [
        "-x/é [1].txt",
        "3:it is two",
        "src/a.js",
        "2:two",
        "src/b.css",
        "1:two {}",
    ]
    assert await search(task, "two", glob="*.css") == ["src/b.css", "1:two {}"]
    assert await search(task, "two", path="./src/", glob="!*.css") == ["src/a.js", "2:two"]
    assert await search(task, "two", path="src/a.js") == ["src/a.js", "2:two"]
    assert await search(task, "two", path="-x") == ["-x/é [1].txt", "3:it is two"]
    assert await search(task, "THREE") == ["No matches."]
    assert await search(task, "THREE", ignore_case=True) == ["src/a.js", "3:Three"]
    assert await search(task, "--files") == ["No matches."]
    task.write("-", "two\n")
    assert await search(task, "two", path="-") == ["-", "1:two"]


async def test_lines_around_are_shown_once(task: World) -> None:
    task.write("a.txt", "".join(f"{n}\n" for n in range(1, 21)))
    assert await search(task, "^(3|5|15)$", context_lines=1) == [
        *("a.txt", "2-2", "3:3", "4-4", "5:5", "6-6", "--", "14-14", "15:15", "16-16"),
    ]
    assert (await search(task, "^(1|20)$", context_lines=1)) == ["a.txt", "1:1", "2-2", "--", "19-19", "20:20"]


async def test_what_is_not_searched(task: World) -> None:
    for name in (".studio/commands/x/output", "node_modules/x/a.js", ".git/config", "a/node_modules/a.js"):
        task.write(name, "needle\n")
    task.write("binary", b"x\0\nneedle\n")
    task.write("big", b"needle\n" + b"x\n" * (6 * 1024 * 1024))
    task.write(".hidden/a.txt", "needle\n")
    task.write("a/.studio/a.txt", "needle\n")
    task.write("ignored.txt", "needle\n")
    task.write(".gitignore", "ignored.txt\n")
    task.write(".rgignore", "*\n")
    (task.root / "link").symlink_to(".hidden")
    os.mkfifo(task.root / "fifo")
    assert await search(task, "needle") == [
        *(".hidden/a.txt", "1:needle", "a/.studio/a.txt", "1:needle", "ignored.txt", "1:needle"),
    ]
    assert await search(task, "needle", glob="**/*") == await search(task, "needle")
    assert await search(task, "needle", path="node_modules/x") == ["node_modules/x/a.js", "1:needle"]
    with pytest.raises(ToolFailure, match="not searched"):
        await search(task, "needle", path=".studio/commands")


async def test_mistakes_come_back_as_ripgrep_says(task: World) -> None:
    task.write("a.txt", "x\n")
    with pytest.raises(ToolFailure, match="unclosed group"):
        await search(task, "(")
    with pytest.raises(ToolFailure, match="error parsing glob"):
        await search(task, "x", glob="{a")
    with pytest.raises(ToolFailure, match="zero byte"):
        await search(task, "x\0")
    with pytest.raises(NotFoundError):
        await search(task, "x", path="missing")
    for bad in ("..", "/etc", "a/../.."):
        with pytest.raises(BadPathError):
            await search(task, "x", path=bad)


async def test_results_are_bounded(task: World) -> None:
    task.write("many.txt", "needle\n" * 500)
    task.write("wide.txt", "needle" + "é" * 100_000 + "\n")
    lines = await search(task, "needle")
    assert len([line for line in lines if ":needle" in line]) == 200
    assert lines[-1].startswith("[… there are more matches")
    wide = await search(task, "needle", path="wide.txt")
    assert wide[:1] == ["wide.txt"]
    assert wide[1].startswith("1:needleéé")
    assert wide[1].endswith("[… 99,706 more]")
    task.write("long.txt", "".join(f"needle {'y' * 280}\n" for _ in range(150)))
    text = (await task.run("search", pattern="needle y")).text
    assert len(text) <= 16_000
    assert "characters cut. Narrow" in text


async def test_a_links_target_outside_is_never_searched(task: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    (task.root / "out").symlink_to(outside)
    (task.root / "file").symlink_to(outside / "secret.txt")
    task.write("inside/a.txt", "x\n")
    (task.root / "within").symlink_to("inside")
    assert await search(task, SECRET) == ["No matches."]
    for path in ("out", "out/secret.txt", "file"):
        with pytest.raises(BadPathError):
            await search(task, SECRET, path=path)
    with pytest.raises(ToolFailure, match="through a link"):
        await search(task, "x", path="within/a.txt")


@contextmanager
def exchanging(place: Path, one: Path, other: Path) -> Iterator[None]:
    """Have `place` be a copy of the one and a link to the other, in turns, as fast as can be."""
    ended = threading.Event()
    spare = place.with_name("spare~")

    def work() -> None:
        while not ended.is_set():
            spare.symlink_to(other)
            spare.rename(place)
            shutil.copyfile(one, spare)
            spare.rename(place)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join()


async def test_a_link_that_is_put_there_in_between_shows_nothing(task: World, tmp_path: Path) -> None:
    secret, harmless = tmp_path / "secret.txt", tmp_path / "harmless.txt"
    secret.write_text(f"{SECRET}\n")
    harmless.write_text("nothing to see\n")
    shutil.copyfile(harmless, task.root / "swapped")
    seen = []
    with exchanging(task.root / "swapped", harmless, secret):
        for _ in range(40):
            try:
                seen += await search(task, "SECRET|nothing", path="swapped")
            except (BadPathError, ToolFailure, NotFoundError):
                continue
    assert not [line for line in seen if SECRET in line]


def test_a_line_that_is_not_there_is_left_out() -> None:
    content = b"nothing\nto see\n"
    assert _lines(content, [Match("a", 8, b"to see")], 0) == ["2:to see"]
    for offset, text in ((0, SECRET.encode()), (8, b"to be"), (9, b"o see"), (100, b""), (0, b"noth"), (15, b"x")):
        assert _lines(content, [Match("a", offset, text)], 0) == []
    cut = Match("a", 0, b"noth [... omitted end of long line]")
    assert _lines(content, [cut], 0) == ["1:nothing"]


async def test_ripgrep_may_be_missing(task: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolFailure, match="not installed"):
        await search(task, "x")


async def test_a_search_that_takes_too_long_is_ended(
    task: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "bin" / "rg"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\necho $$ > ../../../../../pid\nprintf 'a.txt\\0000:x\\n'\nexec sleep 300\n")
    slow.chmod(0o755)
    task.write("a.txt", "x\n")
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("activities.tools.search.SEARCH_S", 0.5)
    lines = await search(task, "x")
    assert lines == [
        "a.txt",
        "1:x",
        "[… there are more matches, or the time was over. Narrow the search by path or glob]",
    ]
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    monkeypatch.setattr("activities.tools.search.SEARCH_S", 60)
    (tmp_path / "pid").unlink()
    searching = asyncio.create_task(search(task, "x"))

    async def begun() -> bool:
        return (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text())

    await until(begun)
    pid = int((tmp_path / "pid").read_text())
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await searching
    assert not Path(f"/proc/{pid}").exists()
