"""Reading and writing through the store, on a real disk."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from activities.files.store import DiskFileStore
from activities.ports import DeleteFile, FileChange, FileOperation, FilePrecondition, FileStore, MoveFile, PutFile
from tests.files.conftest import REF, once
from workflows.contracts.errors import (
    BadPathError,
    ConflictError,
    NotFoundError,
    PreconditionError,
    StudioError,
    TooLargeError,
)

ANY = FilePrecondition()


async def put(store: DiskFileStore, path: str, content: bytes, precondition: FilePrecondition = ANY) -> FileChange:
    return await store.put(REF, path, once(content), precondition)


async def paths(store: FileStore, *, include_all: bool = False) -> list[str]:
    return [entry.path for entry in (await store.entries(REF, depth=10, include_all=include_all)).items]


async def test_a_file_comes_back_as_it_went(store: DiskFileStore, project: Path) -> None:
    change = await put(store, "src/[...slug].tsx", b"\x00\xff\r\n")
    assert (change.path, change.op) == ("src/[...slug].tsx", "created")
    assert await store.read(REF, "src/[...slug].tsx") == b"\x00\xff\r\n"
    opened = await store.open(REF, "src/[...slug].tsx")
    assert opened.entry.etag == change.etag
    assert b"".join([piece async for piece in opened.chunks(1, 3)]) == b"\xff\r"
    await opened.close()
    assert await paths(store) == ["src", "src/[...slug].tsx"]


async def test_an_overwrite_keeps_the_mode_and_changes_the_etag(store: DiskFileStore, project: Path) -> None:
    first = await put(store, "run.sh", b"one")
    (project / "run.sh").chmod(0o4755)
    second = await put(store, "run.sh", b"two")
    assert second.op == "modified"
    assert second.etag != first.etag
    assert stat.S_IMODE((project / "run.sh").stat().st_mode) == 0o755
    assert list((project / ".studio/tmp").iterdir()) == []


async def test_writes_belong_to_the_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    store = DiskFileStore(tmp_path, (1000, 1000))
    source = tmp_path / "template"
    (source / "deep").mkdir(parents=True)
    (source / "deep/file").touch()
    (source / "link").symlink_to("deep/file")
    await store.create(REF, source)
    await put(store, "a/b/c", b"")
    root = store.root(REF)
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (1000, 1000), path


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "./a", "a/.", "a//b", "a/", "a\0b", "\udc80"),
        *("x" * 256, "y/" * 2048 + "y", "/".join(["d"] * 129), ".studio/x", ".studio"),
    ],
)
async def test_what_cannot_be_a_path_is_refused(store: DiskFileStore, project: Path, path: str) -> None:
    before = sorted(project.rglob("*"))
    with pytest.raises(BadPathError):
        await put(store, path, b"evil")
    with pytest.raises(BadPathError):
        await store.delete(REF, path, recursive=True)
    await put(store, "innocent", b"")
    for source, target in ((path, "moved"), ("innocent", path)):
        with pytest.raises(BadPathError):
            await store.move(REF, source, target)
    if not path.startswith(".studio"):
        with pytest.raises(BadPathError):
            await store.read(REF, path)
    await store.delete(REF, "innocent")
    assert [entry for entry in sorted(project.rglob("*")) if ".studio" not in entry.parts] == before


@pytest.mark.parametrize(
    "path",
    [
        "..foo",
        "...",
        "%2e%2e",
        "a b",
        "ünï/ćodé",
        "日本語.txt",
        "-rf",
        "a\\b",
        "\n",
        "x" * 255,
        "src/[...slug].tsx",
        "sub/.studio/x",
    ],
)
async def test_odd_names_are_fine(store: DiskFileStore, project: Path, path: str) -> None:
    await put(store, path, path.encode())
    assert (project / path).read_bytes() == path.encode()
    assert path in await paths(store)


async def test_a_link_inside_is_followed_and_its_file_written(store: DiskFileStore, project: Path) -> None:
    (project / "packages/a").mkdir(parents=True)
    (project / "packages/a/index.js").write_text("a")
    (project / "linked").symlink_to("packages/../packages/a/")
    (project / "packages/CLAUDE.md").symlink_to("AGENTS.md")
    assert await store.read(REF, "linked/index.js") == b"a"
    change = await put(store, "packages/CLAUDE.md", b"be nice")
    assert change == FileChange("packages/AGENTS.md", "created", change.etag)
    assert (project / "packages/CLAUDE.md").is_symlink()
    assert (await put(store, "linked/index.js", b"b")).path == "packages/a/index.js"
    assert [entry.path for entry in (await store.entries(REF, "linked")).items] == ["linked/index.js"]
    assert (await store.delete(REF, "linked")).path == "linked"
    assert (project / "packages/a/index.js").read_bytes() == b"b"


@pytest.mark.parametrize(
    "target", ["/etc", "/", "..", "../../../../../../etc", "inside/../../x", "/proc/self/root/etc"]
)
async def test_a_link_out_is_refused(store: DiskFileStore, project: Path, target: str, tmp_path: Path) -> None:
    (project / "inside").mkdir()
    (project / "out").symlink_to(target)
    for path in ("out", "out/passwd", "out/new/file"):
        with pytest.raises(BadPathError):
            await store.read(REF, path)
        with pytest.raises(BadPathError):
            await put(store, path, b"evil")
        with pytest.raises(BadPathError):
            await store.entries(REF, path)
    with pytest.raises(BadPathError):
        await store.delete(REF, "out/passwd")
    with pytest.raises(BadPathError):
        await store.move(REF, "inside", "out/inside")
    await store.delete(REF, "out")
    assert not (project / "out").is_symlink()


async def test_links_in_a_circle_end(store: DiskFileStore, project: Path) -> None:
    (project / "a").symlink_to("b")
    (project / "b").symlink_to("a")
    (project / "c").symlink_to("c/c")
    for path in ("a", "a/x", "c"):
        with pytest.raises(BadPathError):
            await store.read(REF, path)


async def test_a_link_does_not_open_the_studio_folder(store: DiskFileStore, project: Path) -> None:
    await put(store, "x", b"")
    (project / "door").symlink_to(".studio")
    with pytest.raises(BadPathError):
        await put(store, "door/marker", b"")
    with pytest.raises(BadPathError):
        await store.delete(REF, "door/tmp", recursive=True)


async def test_a_fifo_neither_hangs_nor_is_read(store: DiskFileStore, project: Path) -> None:
    os.mkfifo(project / "fifo")
    async with asyncio.timeout(5):
        for call in (store.read(REF, "fifo"), put(store, "fifo", b""), store.stat(REF, "fifo")):
            with pytest.raises(ConflictError) as caught:
                await call
            assert caught.value.code == "not_a_file"
        assert "fifo" not in await paths(store)
        await store.delete(REF, "fifo")


async def test_a_device_is_not_read(store: DiskFileStore, project: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make devices")
    os.mknod(project / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    with pytest.raises(ConflictError):
        await store.read(REF, "zero", limit=10)


async def test_names_that_are_no_text_are_left_to_the_container(store: DiskFileStore, project: Path) -> None:
    Path(os.fsdecode(os.fsencode(project) + b"/\xff\xfe")).touch()
    (project / "fine").touch()
    assert await paths(store) == ["fine"]


async def test_directories_and_files_are_not_mixed_up(store: DiskFileStore, project: Path) -> None:
    await put(store, "file", b"")
    await put(store, "folder/file", b"")
    for call, code in (
        (put(store, "folder", b""), "is_directory"),
        (put(store, "file/below", b""), "not_a_directory"),
        (store.read(REF, "folder"), "is_directory"),
        (store.delete(REF, "folder"), "is_directory"),
        (store.move(REF, "file", "folder"), "exists"),
        (store.move(REF, "file", "folder", overwrite=True), "is_directory"),
        (store.move(REF, "folder", "folder/below"), "into_itself"),
    ):
        with pytest.raises(StudioError) as caught:
            await call
        assert caught.value.code == code
    assert await paths(store) == ["file", "folder", "folder/file"]
    with pytest.raises(NotFoundError):
        await store.read(REF, "missing/file")


async def test_a_folder_is_deleted_whole(store: DiskFileStore, project: Path) -> None:
    await put(store, "folder/a/b/c", b"")
    assert await store.delete(REF, "folder", recursive=True) == FileChange("folder", "deleted", None)
    assert await paths(store) == []
    assert list((project / ".studio/tmp").iterdir()) == []


async def test_moves_tell_both_paths(store: DiskFileStore, project: Path) -> None:
    await put(store, "a", b"a")
    await put(store, "b", b"b")
    with pytest.raises(ConflictError):
        await store.move(REF, "a", "b")
    gone, come = await store.move(REF, "a", "b", overwrite=True)
    assert gone == FileChange("a", "deleted", None)
    assert come == FileChange("b", "modified", (await store.stat(REF, "b")).etag)
    assert await store.read(REF, "b") == b"a"
    assert await store.move(REF, "b", "b") == []


async def test_preconditions_guard_writes(store: DiskFileStore, project: Path) -> None:
    first = await put(store, "a", b"1", FilePrecondition(if_none_match=True))
    second = await put(store, "a", b"2", FilePrecondition(if_match=first.etag))
    for stale in (FilePrecondition(if_none_match=True), FilePrecondition(if_match=first.etag)):
        with pytest.raises(PreconditionError):
            await put(store, "a", b"3", stale)
        with pytest.raises(PreconditionError):
            await store.delete(REF, "a", precondition=stale)
    with pytest.raises(PreconditionError):
        await put(store, "new/b", b"", FilePrecondition(if_match="*"))
    assert await paths(store) == ["a"]
    await put(store, "a", b"4", FilePrecondition(if_match=f"x, {second.etag}"))
    await store.delete(REF, "a", precondition=FilePrecondition(if_match="*"))


@pytest.mark.parametrize("stores", [1, 2], ids=["one process", "two processes"])
async def test_of_concurrent_writers_with_one_etag_exactly_one_wins(tmp_path: Path, stores: int) -> None:
    # Two stores share nothing in memory: to the lock they are two processes.
    several = [DiskFileStore(tmp_path, None) for _ in range(stores)]
    await several[0].create(REF, None)
    for _ in range(10):
        etag = (await put(several[0], "a", b"start")).etag
        results = await asyncio.gather(
            *(put(several[n % stores], "a", b"%d" % n, FilePrecondition(if_match=etag)) for n in range(8)),
            return_exceptions=True,
        )
        winners = [n for n, result in enumerate(results) if isinstance(result, FileChange)]
        assert len(winners) == 1
        assert all(isinstance(result, FileChange | PreconditionError) for result in results)
        assert await several[0].read(REF, "a") == b"%d" % winners[0]


async def test_sizes_are_bounded_and_leave_nothing(store: DiskFileStore, project: Path) -> None:
    async def endless() -> object:
        while True:
            yield bytes(1024 * 1024)

    with pytest.raises(TooLargeError):
        await store.put(REF, "big", endless(), ANY)  # type: ignore[arg-type]  # an async generator
    assert await paths(store) == []
    assert list((project / ".studio/tmp").iterdir()) == []
    await put(store, "fits", bytes(10 * 1024 * 1024))
    with pytest.raises(TooLargeError):
        await store.read(REF, "fits", limit=100)


async def test_a_project_has_a_bound(tmp_path: Path) -> None:
    store = DiskFileStore(tmp_path, None, project_disk_mb=1)
    await store.create(REF, None)
    await put(store, "a", bytes(700_000))
    with pytest.raises(TooLargeError) as caught:
        await put(store, "b", bytes(700_000))
    assert caught.value.code == "project_full"
    # What the container itself wrote is seen by the next process that measures.
    (store.root(REF) / "c").write_bytes(bytes(1024 * 1024))
    with pytest.raises(TooLargeError):
        await put(DiskFileStore(tmp_path, None, project_disk_mb=1), "d", b"x" * 5000)


async def test_a_batch_goes_on_after_an_error(store: DiskFileStore, project: Path) -> None:
    results = await store.batch(
        REF, [PutFile("a", b"1"), DeleteFile("missing"), MoveFile("a", "b"), PutFile("../x", b"")], atomic=False
    )
    assert isinstance(results[1], NotFoundError)
    assert isinstance(results[3], BadPathError)
    assert await paths(store) == ["b"]


@pytest.mark.parametrize(
    "last",
    [
        DeleteFile("missing"),
        PutFile("a", b"", FilePrecondition(if_match="stale")),
        PutFile("new/file", b"", FilePrecondition(if_none_match=True)),  # shows only on the way: the batch made it
        MoveFile("moved", "deep/file"),
        PutFile("deep/file/below", b""),
    ],
)
async def test_an_atomic_batch_is_all_or_none(store: DiskFileStore, project: Path, last: FileOperation) -> None:
    await put(store, "a", b"a")
    await put(store, "deep/file", b"d")
    (project / "empty").mkdir()
    (project / "link").symlink_to("a")
    good: list[FileOperation] = [
        PutFile("a", b"changed"),
        PutFile("new/file", b"n"),
        DeleteFile("deep", recursive=True),
        PutFile("deep/file", b"again"),
        MoveFile("a", "moved"),
        DeleteFile("link"),
    ]
    results = await store.batch(REF, [*good, last], atomic=True)
    assert isinstance(results[-1], StudioError)
    assert [getattr(result, "code", None) for result in results[:-1]] == ["not_applied"] * len(good)
    assert await paths(store) == ["a", "deep", "deep/file", "empty", "link"]
    assert (await store.read(REF, "a"), await store.read(REF, "deep/file")) == (b"a", b"d")
    assert list((project / ".studio/tmp").iterdir()) == []
    assert all(isinstance(result, list) for result in await store.batch(REF, good, atomic=True))
    assert await paths(store) == ["deep", "deep/file", "empty", "moved", "new", "new/file"]


async def test_an_atomic_batch_refused_beforehand_touches_no_etag(store: DiskFileStore, project: Path) -> None:
    etag = (await put(store, "a", b"a")).etag
    await store.batch(REF, [PutFile("a", b"b"), DeleteFile("missing")], atomic=True)
    assert (await store.stat(REF, "a")).etag == etag


async def test_listings_end(store: DiskFileStore, project: Path) -> None:
    (project / "node_modules/react").mkdir(parents=True)
    (project / "many").mkdir()
    for n in range(10_050):
        (project / "many" / str(n)).touch()
    (project / "zz").touch()
    listing = await store.entries(REF, depth=3)
    assert listing.truncated
    assert len(listing.items) == 10_000
    found = {entry.path for entry in listing.items}
    assert {"many", "zz", "node_modules"} <= found
    assert "node_modules/react" not in found
    assert not (await store.entries(REF, "node_modules")).truncated


async def test_studio_is_shown_only_on_request(store: DiskFileStore, project: Path) -> None:
    await put(store, "a", b"")
    assert await paths(store) == ["a"]
    assert await paths(store, include_all=True) == [".studio", ".studio/tmp", "a"]


async def test_a_damaged_studio_folder_breaks_only_the_owners_own_writes(store: DiskFileStore, project: Path) -> None:
    (project / ".studio").symlink_to("/tmp")
    before = set(Path("/tmp").iterdir())
    with pytest.raises(ConflictError) as caught:
        await put(store, "a", b"evil")
    assert caught.value.code == "studio_folder_damaged"
    assert {entry.name for entry in set(Path("/tmp").iterdir()) - before if entry.name.startswith("put-")} == set()


async def test_a_project_without_a_folder_is_not_found(store: DiskFileStore) -> None:
    for call in (store.entries(REF), store.read(REF, "a"), put(store, "a", b"")):
        with pytest.raises(NotFoundError):
            await call
