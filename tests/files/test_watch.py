"""Changes made beside the store, as a program in a container makes them."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from activities.files import inotify, watch
from activities.files.entries import etag_of
from activities.files.store import DiskFileStore
from activities.ports import FileChange, FilePrecondition
from tests.files.conftest import REF, once
from tests.runtimes.waiting import until
from workflows.contracts.errors import UnavailableError


class Watched:
    """What a running watch has told so far."""

    def __init__(self) -> None:
        self.changes: list[FileChange] = []
        self._more = asyncio.Event()

    async def tell(self, changes: Sequence[FileChange]) -> None:
        self.changes += changes
        self._more.set()

    async def until(self, *expected: tuple[str, str], within_s: float = 8) -> None:
        async with asyncio.timeout(within_s):
            while not set(expected) <= {(change.path, change.op) for change in self.changes}:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def watching(root: Path, watched: Watched | None = None) -> AsyncIterator[Watched]:
    stop = asyncio.Event()
    watched = watched or Watched()
    task = asyncio.create_task(watch.watch_changes(root, stop, watched.tell, nullcontext))
    await asyncio.sleep(0.3)
    try:
        yield watched
    finally:
        stop.set()
        async with asyncio.timeout(5):
            await task


class LogAway(Watched):
    """Can't tell anything until it is back; `refused` is what it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True
        self.refused: set[tuple[str, str]] = set()

    async def tell(self, changes: Sequence[FileChange]) -> None:
        if self.away:
            self.refused |= {(change.path, change.op) for change in changes}
            raise UnavailableError("The database is away.")
        await super().tell(changes)


async def comes_true(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds)


class NoInstances(inotify.Inotify):
    """Every instance is taken."""

    def __init__(self) -> None:
        raise OSError(24, "Too many open files")


class FewWatches(inotify.Inotify):
    """The machine has two watches left."""

    def add(self, directory: int) -> int:
        watch = super().add(directory)
        if watch > 2:
            raise OSError(28, "No space left on device")
        return watch


@pytest.mark.parametrize("kind", [inotify.Inotify, NoInstances, FewWatches])
async def test_every_kind_of_change_is_told(
    tmp_path: Path, kind: type[inotify.Inotify], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "Inotify", kind)
    for folder in ("src/old", "node_modules/react", ".git", ".studio/tmp"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src/old/a").write_text("1")
    (tmp_path / "src/b").write_text("1")
    async with watching(tmp_path) as watched:
        (tmp_path / "src/b").write_text("22")
        (tmp_path / "new/deep/er").mkdir(parents=True)
        (tmp_path / "new/deep/er/c").touch()
        (tmp_path / "src/old").rename(tmp_path / "src/moved")
        (tmp_path / "link").symlink_to("/etc")
        for ignored in ("node_modules/react/x", ".git/index", ".studio/tmp/x"):
            (tmp_path / ignored).touch()
        await watched.until(
            ("src/b", "modified"),
            ("new/deep/er/c", "created"),
            ("src/old/a", "deleted"),
            ("src/moved/a", "created"),
            ("link", "created"),
        )
        (tmp_path / "src/moved/a").write_text("333")  # the watch moved along
        (tmp_path / "new/deep/er/d").touch()
        await watched.until(("src/moved/a", "modified"), ("new/deep/er/d", "created"))
        shutil.rmtree(tmp_path / "new")
        await watched.until(("new/deep/er/c", "deleted"), ("new/deep/er/d", "deleted"))
    assert not any(change.path.startswith((".git", "node_modules", ".studio")) for change in watched.changes)
    etags = {change.path: change.etag for change in watched.changes}
    assert etags["src/b"] == etag_of((tmp_path / "src/b").stat())
    assert etags["new/deep/er/c"] is None


async def test_a_replaced_directory_is_still_watched(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/a").touch()
    async with watching(tmp_path) as watched:
        for n in range(3):
            shutil.rmtree(tmp_path / "dist")
            (tmp_path / "dist").mkdir()
            (tmp_path / f"dist/b{n}").touch()
            await watched.until((f"dist/b{n}", "created"))
        (tmp_path / "dist").rename(tmp_path / "gone")
        (tmp_path / "dist").mkdir()
        await watched.until(("dist/b2", "deleted"), ("gone/b2", "created"))
        (tmp_path / "dist/c").touch()
        (tmp_path / "gone/d").touch()
        await watched.until(("dist/c", "created"), ("gone/d", "created"))


async def test_what_could_not_be_told_is_told_as_it_is_when_it_can(tmp_path: Path) -> None:
    (tmp_path / "old/deep").mkdir(parents=True)
    for name in ("old/deep/x", "old/y", "changed", "removed"):
        (tmp_path / name).write_text("1")
    log = LogAway()
    async with watching(tmp_path, log):
        shutil.rmtree(tmp_path / "old")
        (tmp_path / "removed").unlink()
        for name in ("changed", "new", "passing"):
            (tmp_path / name).write_text("22")
        deletions = {(name, "deleted") for name in ("old/deep/x", "old/y", "removed")}
        others = {("changed", "modified"), ("new", "created"), ("passing", "created")}
        await comes_true(lambda: log.refused >= deletions | others)
        (tmp_path / "passing").unlink()
        (tmp_path / "removed").write_text("here again")
        (tmp_path / "changed").write_text("333")
        log.away = False
        await log.until(("changed", "modified"), ("old/y", "deleted"), ("removed", "modified"))
        await asyncio.sleep(watch.DEBOUNCE_S * 2)
    etags = {name: etag_of((tmp_path / name).stat()) for name in ("changed", "new", "removed")}
    assert sorted((change.path, change.op, change.etag) for change in log.changes) == [
        ("changed", "modified", etags["changed"]),
        ("new", "created", etags["new"]),
        ("old/deep/x", "deleted", None),
        ("old/y", "deleted", None),
        ("removed", "modified", etags["removed"]),
    ]


@pytest.mark.parametrize("slow", ["writer", "watcher"])
async def test_the_log_has_a_files_changes_in_their_order(tmp_path: Path, slow: str) -> None:
    writer, watcher = DiskFileStore(tmp_path, None), DiskFileStore(tmp_path, None)  # to the lock, two processes
    await writer.create(REF, None)
    file = writer.root(REF) / "a"
    log: list[tuple[str, str | None]] = []
    later: list[str | None] = []

    def now() -> str | None:
        return etag_of(file.stat()) if file.exists() else None

    async def tell(who: str, changes: Sequence[FileChange]) -> None:
        await asyncio.sleep(watch.DEBOUNCE_S * 3 if who == slow else 0)
        log.extend((who, change.etag) for change in changes)
        later.append(now())

    stop = asyncio.Event()
    watching = asyncio.create_task(watcher.watch(REF, stop, partial(tell, "watcher")))
    await asyncio.sleep(0.3)
    for content in (b"1", b"2", b"3"):
        await writer.put(REF, "a", once(content), FilePrecondition(), tell=partial(tell, "writer"))
        await asyncio.sleep(watch.DEBOUNCE_S * 1.5)
    await comes_true(lambda: ("watcher", now()) in log)
    await writer.delete(REF, "a", tell=partial(tell, "writer"))
    await comes_true(lambda: ("watcher", None) in log)
    stop.set()
    await watching
    etags = [etag for _, etag in log]
    assert etags == later, "there was a write between a change and the telling of it"
    assert [who for n, (who, etag) in enumerate(log) if etag not in etags[:n]] == ["writer"] * 4


async def test_a_flood_ends_in_the_right_picture(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        for n in range(3000):
            (tmp_path / f"d{n % 50}").mkdir(exist_ok=True)
            (tmp_path / f"d{n % 50}/{n}").touch()
        await watched.until(*((f"d{n % 50}/{n}", "created") for n in range(3000)))


@pytest.mark.parametrize("kind", [inotify.Inotify, NoInstances])
async def test_a_folder_that_goes_away_ends_the_watch(
    tmp_path: Path, kind: type[inotify.Inotify], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "Inotify", kind)
    root = tmp_path / "project"
    root.mkdir()
    watched = Watched()
    task = asyncio.create_task(watch.watch_changes(root, asyncio.Event(), watched.tell, nullcontext))
    await asyncio.sleep(0.3)
    root.rename(tmp_path / "removed")
    async with asyncio.timeout(5):
        await task
    assert not watched.changes


async def test_ends_leave_no_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        async with watching(tmp_path):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
