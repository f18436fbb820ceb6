"""What the service does with a project's files, beside a program in its container: each runs in `service`'s process."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress

from activities.files.store import DiskFileStore
from activities.ports import FileChange, FilePrecondition, PutFile
from tests.files.conftest import once
from workflows.contracts.errors import StudioError
from workflows.contracts.names import ProjectRef

ANY = FilePrecondition()


async def create(store: DiskFileStore, ref: ProjectRef) -> None:
    await store.create(ref, None)


async def put(store: DiskFileStore, ref: ProjectRef, path: str, content: bytes, wanted: FilePrecondition) -> str | None:
    return (await store.put(ref, path, once(content), wanted)).etag


async def read(store: DiskFileStore, ref: ProjectRef, path: str) -> bytes:
    return await store.read(ref, path)


async def delete(store: DiskFileStore, ref: ProjectRef, path: str) -> None:
    await store.delete(ref, path, recursive=True)


async def files(store: DiskFileStore, ref: ProjectRef) -> dict[str, str]:
    """Every file's path and digest, one read after the other."""
    listing = await store.entries(ref, depth=128)
    assert not listing.truncated
    return {item.path: digest(await store.read(ref, item.path)) for item in listing.items if item.type == "file"}


async def exported(store: DiskFileStore, ref: ProjectRef) -> bytes:
    return b"".join([piece async for piece in store.export(ref)])


async def fill(store: DiskFileStore, ref: ProjectRef, contents: dict[str, bytes], archive: bytes) -> None:
    """By each of the ways in: an upload, a batch, an archive."""
    first, *others = contents.items()
    await store.put(ref, first[0], once(first[1]), ANY)
    for result in await store.batch(ref, [PutFile(path, content) for path, content in others], atomic=True):
        if isinstance(result, StudioError):
            raise result
    await store.import_archive(ref, once(archive))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def race(store: DiskFileStore, ref: ProjectRef, within_s: float) -> set[bytes | str]:
    """All that reads and listings told, and the errors."""
    seen: set[bytes | str] = set()

    async def attempt(path: str) -> None:
        try:
            seen.add(await store.read(ref, path))
            seen.update(entry.path for entry in (await store.entries(ref, "door")).items)
            await store.put(ref, "door/written", once(b"w"), ANY)
            await store.move(ref, "door/written", "door/moved", overwrite=True)
            await store.delete(ref, "door/moved")
        except StudioError as error:
            seen.add(error.code)

    deadline = time.monotonic() + 20
    enough = time.monotonic() + within_s
    met = {b"mine", "bad_path", "door/file"}
    while time.monotonic() < enough or (not met <= seen and time.monotonic() < deadline):
        await asyncio.gather(*(attempt(path) for path in ("door/file", "plain")))
    return seen


async def replace_and_read(store: DiskFileStore, ref: ProjectRef) -> int:
    """The same on this side; how many versions of the other's file were seen."""
    seen: set[bytes] = set()
    deadline = time.monotonic() + 20
    rounds = 0
    while (rounds < 60 or len(seen) < 5) and time.monotonic() < deadline:
        rounds += 1
        await store.put(ref, "from-outside", once(bytes([rounds % 256]) * 300_000), ANY)
        with suppress(StudioError):
            content = await store.read(ref, "from-inside")
            assert len(content) == 300_000
            assert content.count(content[:1]) == len(content)
            seen.add(content[:1])
    await store.put(ref, "end", once(b""), ANY)
    return len(seen)


async def watched(store: DiskFileStore, ref: ProjectRef, expected: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What the watch tells, ticks left out, until it has told of all that is expected."""
    told: set[tuple[str, str]] = set()
    looking, stop = asyncio.Event(), asyncio.Event()

    async def tell(changes: Sequence[FileChange]) -> None:
        looking.set()
        told.update((change.path, change.op) for change in changes if not change.path.startswith("tick-"))
        if told >= expected:
            stop.set()

    with suppress(TimeoutError):
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(store.watch(ref, stop, tell))
            await looking.wait()
            await store.put(ref, "seen", once(b""), ANY)
    return told


async def destroy(store: DiskFileStore, ref: ProjectRef) -> list[str]:
    """Destroy it twice; what is left in the store's own folder."""
    await store.destroy(ref)
    await store.destroy(ref)
    assert not await store.exists(ref)
    own = store.root(ref).parents[3] / ".studio-store"
    return [path.name for folder in ("work", "locks") for path in (own / folder).iterdir() if "-" in path.name]
