"""Archives that come in, friendly and hostile, and archives that go out."""

import gzip
import io
import random
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activities.files import archive
from activities.files.store import DiskFileStore
from activities.ports import FilePrecondition
from tests.files.conftest import REF, once
from workflows.contracts.errors import InvalidError, StudioError, TooLargeError
from workflows.contracts.names import ProjectRef

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return header, content


def link(name: str, text: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=text)


def tar(members: Members) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as file:
        for header, content in members:
            file.addfile(header, io.BytesIO(content))
    return packed.getvalue()


def zipped(*members: tuple[str, bytes, int], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as file:
        for name, content, mode in members:
            header = zipfile.ZipInfo(name)
            header.external_attr = mode << 16
            header.compress_type = compression
            file.writestr(header, content)
    return packed.getvalue()


async def tree(store: DiskFileStore, ref: ProjectRef = REF) -> dict[str, bytes | str]:
    root = store.root(ref)
    found: dict[str, bytes | str] = {}
    for entry in (await store.entries(ref, depth=50)).items:
        path = root / entry.path
        if entry.type == "symlink":
            found[entry.path] = str(path.readlink())
        else:
            found[entry.path] = path.read_bytes() if entry.type == "file" else "dir"
    return found


async def test_a_tar_is_unpacked_over_the_project(store: DiskFileStore, project: Path) -> None:
    (project / "kept").write_text("kept")
    (project / "a").write_text("old")
    packed = tar(
        [
            member("./"),
            member("./a", b"new"),
            member("empty", type=tarfile.DIRTYPE),
            member("src/run.sh", b"#!", mode=0o4755),
            link("src/link", "../a"),
            link("copy", "src/run.sh", tarfile.LNKTYPE),
            member(".studio/marker", b"no"),
            member("node_modules/react/index.js", b"no"),
        ]
    )
    changes = await store.import_archive(REF, once(packed))
    assert {(change.path, change.op) for change in changes} == {
        ("a", "modified"),
        ("src/run.sh", "created"),
        ("src/link", "created"),
        ("copy", "created"),
    }
    assert await tree(store) == {
        "a": b"new",
        "copy": b"#!",
        "empty": "dir",
        "kept": b"kept",
        "src": "dir",
        "src/link": "../a",
        "src/run.sh": b"#!",
    }
    assert stat.S_IMODE((project / "src/run.sh").stat().st_mode) == 0o755
    assert list((project / ".studio/tmp").iterdir()) == []


async def test_a_zip_is_unpacked(store: DiskFileStore, project: Path) -> None:
    packed = zipped(
        ("folder/", b"", 0o40755),
        ("folder/a b.txt", b"text", 0),
        ("run", b"#!", stat.S_IFREG | 0o700),
        ("link", b"folder/a b.txt", stat.S_IFLNK | 0o777),
    )
    await store.import_archive(REF, once(packed))
    assert await tree(store) == {"folder": "dir", "folder/a b.txt": b"text", "run": b"#!", "link": "folder/a b.txt"}
    assert (project / "run").stat().st_mode & 0o777 == 0o755


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "text": b"no archive at all",
    "half a tar": tar([member("a", random.Random(1).randbytes(5000))])[:2000],
    "gzip without a tar": gzip.compress(b"x" * 5000),
    "cut in the padding": gzip.compress(bytes(10240))[:-9],
    "half a zip": zipped(("a", b"x" * 1000, 0))[:-20],
    "up": tar([member("../evil")]),
    "up within": tar([member("a/../../evil")]),
    "absolute": tar([member("/tmp/evil")]),
    "zip up": zipped(("../evil", b"", 0)),
    "zip absolute": zipped(("/tmp/evil", b"", 0)),
    "no name": tar([member("a//b")]),
    "long name": tar([member("x" * 300)]),
    "link out": tar([link("l", "../../etc/passwd")]),
    "link to an absolute name": tar([link("l", "/etc/passwd")]),
    "link out of a folder": tar([link("a/l", "../../x")]),
    "zip link out": zipped(("l", b"../x", stat.S_IFLNK | 0o777)),
    "through a link": tar([link("l", "sub"), member("l/evil")]),
    "a link after its file": tar([member("l/evil"), link("l", "sub")]),
    "a file that becomes a link": tar([member("l"), link("l", "sub")]),
    "hard link out": tar([link("h", "/etc/passwd", tarfile.LNKTYPE)]),
    "hard link to nothing": tar([link("h", "missing", tarfile.LNKTYPE)]),
    "fifo": tar([member("f", type=tarfile.FIFOTYPE)]),
    "device": tar([member("d", type=tarfile.CHRTYPE, devmajor=1, devminor=5)]),
    "zip fifo": zipped(("f", b"", stat.S_IFIFO | 0o666)),
    "file as folder": tar([member("a", b"x"), member("a/b", b"x")]),
    "rare packing": zipped(("a", b"x", 0), compression=zipfile.ZIP_LZMA),
    "too many": tar([member(f"f{n}") for n in range(202)]),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_archive_writes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 200)
    store = DiskFileStore(tmp_path / "root", None)
    await store.create(REF, None)
    before = sorted(path for path in tmp_path.rglob("*") if path.name != ".studio-store")
    with pytest.raises(InvalidError) as caught:
        await store.import_archive(REF, once(HOSTILE[name]))
    assert caught.value.code == "bad_archive"
    assert await tree(store) == {}
    left = [path for path in sorted(tmp_path.rglob("*")) if not {".studio", ".studio-store"} & set(path.parts)]
    assert left == [path for path in before if ".studio-store" not in path.parts]
    assert list(store.root(REF).glob(".studio/tmp/*")) == []


def bombs() -> dict[str, bytes]:
    zeros = bytes(8 * 1024 * 1024)
    many = 30
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=9) as file:
        for n in range(many):
            file.addfile(member(f"z{n}", zeros)[0], io.BytesIO(zeros))
    # A long name's header announces its own size: read as a whole, it would fill the memory.
    header = member("x", type=tarfile.GNUTYPE_LONGNAME)[0]
    header.size = 150 * 1024 * 1024
    long_name = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(header.size), 1)
    sparse = member("s", type=tarfile.GNUTYPE_SPARSE)[0]
    claims = header.tobuf(tarfile.GNU_FORMAT)[:124] + b"\x80" + b"\x7f" * 11 + header.tobuf(tarfile.GNU_FORMAT)[136:]
    links = [member("big", zeros), *(link(f"l{n}", "big", tarfile.LNKTYPE) for n in range(many))]
    return {
        "tar": packed.getvalue(),
        "zip": zipped(*((f"z{n}", zeros, 0) for n in range(many))),
        "long name": long_name,
        "sparse": gzip.compress(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024)),
        "impossible size": gzip.compress(claims + bytes(1024)),
        "hard links": tar(links),
        "gzip of nothing but zeros": gzip.compress(zeros, 9) * 120,
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_refused_without_filling_memory(name: str, tmp_path: Path) -> None:
    store = DiskFileStore(tmp_path, None)
    await store.create(REF, None)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidError) as caught:
            await store.import_archive(REF, once(BOMBS[name]))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "bad_archive"
    assert most < 40 * 1024 * 1024
    assert await tree(store) == {}


async def test_an_archive_that_does_not_fit_changes_nothing(store: DiskFileStore, project: Path) -> None:
    (project / "z").mkdir()
    (project / "out").symlink_to("/tmp")
    (project / "a").write_text("old")
    etag = (await store.stat(REF, "a")).etag
    for last in (member("z", b"a file over a folder"), member("out/evil", b"through a link out")):
        with pytest.raises(InvalidError) as caught:
            await store.import_archive(REF, once(tar([member("a", b"new"), member("b/c", b"new"), last])))
        assert caught.value.code == "bad_archive"
        assert await tree(store) == {"a": b"old", "z": "dir", "out": "/tmp"}
        assert (await store.stat(REF, "a")).etag == etag
    # What shows only on the way is taken back.
    with pytest.raises(InvalidError):
        await store.import_archive(REF, once(tar([member("a", b"new"), member("b/c", b"new"), link("z", "a")])))
    assert await tree(store) == {"a": b"old", "z": "dir", "out": "/tmp"}


async def test_an_archive_has_a_packed_bound(tmp_path: Path) -> None:
    store = DiskFileStore(tmp_path, None)
    await store.create(REF, None)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(4 * 1024 * 1024)

    with pytest.raises(TooLargeError):
        await store.import_archive(REF, endless())


async def test_an_export_can_be_left_half_read(store: DiskFileStore, project: Path) -> None:
    for n in range(20):
        (project / f"{n}").write_bytes(random.Random(n).randbytes(500_000))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        pieces = store.export(REF)
        await anext(pieces)
        await pieces.aclose()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=120).filter(
    lambda name: name not in {".", "..", ".studio", "node_modules"} and len(name.encode()) <= 255
)
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map("/".join), st.binary(max_size=2000), max_size=8)


async def test_any_tree_goes_out_and_in_and_comes_back_the_same(tmp_path: Path) -> None:
    trees: list[dict[str, bytes]] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(TREES)
    def draw(drawn: dict[str, bytes]) -> None:
        trees.append(drawn)

    draw()
    store = DiskFileStore(tmp_path, None)
    for number, drawn in enumerate(trees):
        here, there = ProjectRef(1, number), ProjectRef(2, number)
        await store.create(here, None)
        await store.create(there, None)
        for path, content in drawn.items():
            try:
                await store.put(here, path, once(content), FilePrecondition())
            except StudioError as error:
                assert error.code in {"not_a_directory", "is_directory"}  # noqa: PT017 -- a name as file and folder
        wanted = await tree(store, here)
        assert all(
            wanted[path] == content for path, content in drawn.items() if wanted.get(path) != "dir" and path in wanted
        )
        await store.import_archive(there, store.export(here))
        assert await tree(store, there) == wanted
