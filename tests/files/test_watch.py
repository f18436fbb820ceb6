"""Changes made beside the store, as a program in a container makes them."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from activities.files import inotify, watch
from activities.files.entries import etag_of
from activities.ports import FileChange


class Watched:
    """What a running watch has told so far."""

    def __init__(self) -> None:
        self.changes: list[FileChange] = []
        self._more = asyncio.Event()

    def take(self, changes: list[FileChange]) -> None:
        self.changes += changes
        self._more.set()

    async def until(self, *expected: tuple[str, str], within_s: float = 8) -> None:
        async with asyncio.timeout(within_s):
            while not set(expected) <= {(change.path, change.op) for change in self.changes}:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def watching(root: Path) -> AsyncIterator[Watched]:
    stop = asyncio.Event()
    watched = Watched()

    async def follow() -> None:
        async for changes in watch.watch_changes(root, stop):
            watched.take(changes)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.3)
    try:
        yield watched
    finally:
        stop.set()
        async with asyncio.timeout(5):
            await task


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


async def test_a_flood_ends_in_the_right_picture(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        for n in range(3000):
            (tmp_path / f"d{n % 50}").mkdir(exist_ok=True)
            (tmp_path / f"d{n % 50}/{n}").touch()
        await watched.until(*((f"d{n % 50}/{n}", "created") for n in range(3000)))


async def test_a_folder_that_goes_away_ends_the_watch(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    stop = asyncio.Event()

    async def follow() -> list[list[FileChange]]:
        return [changes async for changes in watch.watch_changes(root, stop)]

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.3)
    root.rename(tmp_path / "removed")
    async with asyncio.timeout(5):
        assert await task == []


async def test_ends_leave_no_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        async with watching(tmp_path):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
