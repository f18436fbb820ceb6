"""A program in the container that changes the tree while the service works in it, as fast as it can."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from activities.files.beneath import rename_new
from activities.files.store import DiskFileStore
from activities.files.trees import measure
from activities.ports import FilePrecondition
from tests.files.conftest import REF, once
from workflows.contracts.errors import StudioError

_EXCHANGE = 2
_SPAWN = multiprocessing.get_context("spawn")


def exchange_for_ever(first: str, second: str) -> None:
    """Exchange two names in one step, again and again."""
    libc = ctypes.CDLL(None)
    while True:
        libc.renameat2(-100, first.encode(), -100, second.encode(), _EXCHANGE)


@contextmanager
def running(target: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    process = _SPAWN.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(10)


async def test_a_directory_exchanged_for_a_link_leaks_nothing(store: DiskFileStore, project: Path) -> None:
    outside = project.parent.parent.parent.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    (project / "door").mkdir()
    (project / "door/file").write_bytes(b"mine")
    (project / "trap").symlink_to(outside)
    (project / "plain").write_bytes(b"plain")
    (project / "plain-trap").symlink_to(outside / "file")
    seen: set[bytes | str] = set()

    async def attempt(path: str) -> None:
        try:
            seen.add(await store.read(REF, path))
            listing = await store.entries(REF, "door")
            seen.update(entry.path for entry in listing.items)
            await store.put(REF, "door/written", once(b"w"), FilePrecondition())
            await store.delete(REF, "door/written")
        except StudioError as error:
            seen.add(error.code)

    with (
        running(exchange_for_ever, str(project / "door"), str(project / "trap")),
        running(exchange_for_ever, str(project / "plain"), str(project / "plain-trap")),
    ):
        await asyncio.sleep(0.5)
        began, rounds = time.monotonic(), 0
        met = {"bad_path", b"mine"}
        while (took := time.monotonic() - began) < 3 or ((rounds <= 100 or not met <= seen) and took < 60):
            await asyncio.gather(*(attempt(path) for path in ("door/file", "plain")))
            rounds += 1
    assert b"secret" not in seen
    assert met <= seen, "the race wasn't met"
    assert sorted(path.name for path in outside.iterdir()) == ["file"]
    assert rounds > 100


def test_a_rename_to_a_new_name_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("nowhere")
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        rename_new((folder, "a"), (folder, "b"))
    rename_new((folder, "a"), (folder, "c"))
    os.close(folder)
    assert (tmp_path / "c").read_text() == "a"


def nest(root: Path, depth: int) -> None:
    """Nest directories deeper than any path can name."""
    folder = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)


async def test_a_hostile_tree_is_destroyed(store: DiskFileStore, project: Path, tmp_path: Path) -> None:
    nest(project, 5000)
    (project / "wide").mkdir()
    for n in range(500):
        (project / "wide" / str(n)).touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (project / "link").symlink_to(outside)
    os.mkfifo(project / "fifo")
    (project / "locked/below").mkdir(parents=True)
    (project / "locked").chmod(0)
    Path(os.fsdecode(os.fsencode(project) + b"/\xff")).mkdir()
    assert (await store.entries(REF, depth=128)).items
    assert measure(project, most_entries=10_000)[1] > 600
    await store.destroy(REF)
    await store.destroy(REF)
    assert not await store.exists(REF)
    assert list((tmp_path / "root/.studio-store/work").iterdir()) == []
    assert list((tmp_path / "root/.studio-store/locks").iterdir()) == []
    assert (outside / "kept").exists()


_AS_ANOTHER_USER = """
import asyncio, os, sys
from pathlib import Path
from activities.files.store import DiskFileStore
from workflows.contracts.names import ProjectRef
async def main():
    store = DiskFileStore(Path(sys.argv[1]) / "mine", None)
    ref = ProjectRef(1, 2)
    await store.create(ref, None)
    root = store.root(ref)
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/file").touch()
    for path in ("a/b/c", "a/b", "a"):
        (root / path).chmod(0)
    await store.destroy(ref)
    assert not root.exists()
    assert list((store._projects_root / ".studio-store/work").iterdir()) == []
os.setgid(1234); os.setuid(1234)
asyncio.run(main())
"""


async def test_a_locked_tree_is_destroyed_without_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("becomes another user, which only root can")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", _AS_ANOTHER_USER, folder)
        async with asyncio.timeout(30):
            assert await process.wait() == 0


async def test_a_copy_holds_no_more_than_it_should(store: DiskFileStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("src", "node_modules/react", ".studio/commands", "sub/.studio"):
        (source / folder).mkdir(parents=True)
        (source / folder / "file").write_text(folder)
    (source / "src/run").touch(mode=0o755)
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    await store.create(REF, source)
    await store.create(REF, source)
    root = store.root(REF)
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert found == {"src", "src/file", "src/run", "node_modules", "sub", "sub/.studio", "sub/.studio/file", "link"}
    assert (root / "link").readlink() == Path("/etc/passwd")
    assert (root / "src/run").stat().st_mode & 0o777 == 0o755


async def test_creations_at_once_make_one_project(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(50):
        (source / str(n)).write_text(str(n))
    stores = [DiskFileStore(tmp_path / "root", None) for _ in range(3)]
    await asyncio.gather(*(stores[n % 3].create(REF, source) for n in range(9)))
    assert len(list(stores[0].root(REF).iterdir())) == 50
    await asyncio.gather(*(store.destroy(REF) for store in stores), *(store.create(REF, source) for store in stores))
    assert not list((tmp_path / "root/.studio-store/work").iterdir())


def create_slowly(root: str, source: str) -> None:
    """Make a project, as a worker that will be killed does."""
    asyncio.run(DiskFileStore(Path(root), None).create(REF, Path(source)))


async def test_a_creation_that_was_killed_leaves_no_half_project(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(4000):
        (source / f"{n:04}").write_bytes(bytes(5000))
    store = DiskFileStore(tmp_path / "root", None)
    work = tmp_path / "root/.studio-store/work"
    other = work / "7-123-other"  # another project's, whose name begins alike
    other.mkdir(parents=True)
    met = 0
    for _ in range(3):
        with running(create_slowly, str(tmp_path / "root"), str(source)) as process:
            async with asyncio.timeout(20):
                while process.is_alive() and not [  # noqa: ASYNC110 -- another process's progress
                    path for path in work.iterdir() if path != other and any(path.iterdir())
                ]:
                    await asyncio.sleep(0.002)
            os.kill(process.pid or 0, signal.SIGKILL)
        met += not await store.exists(REF)
        if await store.exists(REF):
            assert len(list(store.root(REF).iterdir())) == 4000
            await store.destroy(REF)
    assert met, "the kill never came in the middle"
    await store.create(REF, source)
    assert len(list(store.root(REF).iterdir())) == 4000
    assert list(work.iterdir()) == [other]
