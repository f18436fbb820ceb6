"""A project's files as the tools read and write them: whole, over the version that the task has seen, once."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from activities.ports import FileChange, FilePrecondition
from activities.tools.bounds import size_text
from activities.tools.tool import ToolContext, ToolFailure, ToolResult
from workflows.contracts.errors import ConflictError, NotFoundError, PreconditionError

MAX_FILE = 10 * 1024 * 1024
_LOOKED_AT = 64 * 1024


@dataclass(frozen=True)
class FileContent:
    """A file's bytes and the version that they are of."""

    data: bytes
    etag: str | None

    @property
    def binary(self) -> bool:
        """Whether it is no text: texts have no zero bytes."""
        return b"\0" in self.data[:_LOOKED_AT]


async def load(context: ToolContext, path: str) -> FileContent:
    """The whole file. Raises `ToolFailure` when it is larger than 10 MiB, else as `FileStore.open`."""
    file = await context.files.open(context.ref, path)
    try:
        if file.entry.size > MAX_FILE:
            raise ToolFailure(
                f"{path!r} has {size_text(file.entry.size)}, the limit is {size_text(MAX_FILE)}. Look for what you "
                "need with search, or read a part with run_command (head, tail, sed -n)."
            )
        return FileContent(b"".join([piece async for piece in file.chunks()]), file.entry.etag)
    finally:
        await file.close()


def changed(path: str) -> ToolFailure:
    """Somebody else has written the file since the task read it."""
    return ToolFailure(
        f"{path!r} has changed since you read it, perhaps by its owner or by a command; nothing was written. Read it "
        "again, keep what is new in it, and repeat your change."
    )


async def written_before(context: ToolContext, path: str) -> ToolResult | None:
    """The answer of an earlier attempt of this call that wrote the file but didn't get to say so."""
    intent = await context.notes.intent()
    if intent is None or intent.get("path") != path:
        return None
    try:
        now = await load(context, path)
    except (NotFoundError, ConflictError, ToolFailure):
        return None
    if hashlib.sha256(now.data).hexdigest() != intent["sha256"]:
        return None
    change = FileChange(path, intent["op"], now.etag)
    await context.notes.tell_changes([change])
    return await _noted(context, path, change, intent["answer"])


async def write_once(context: ToolContext, path: str, content: bytes, answer: str, *, over: str | None) -> ToolResult:
    """Write the file over the version `over`, None: only where nothing is. `answer`: what the model is told.

    What is about to be written is noted first, for `written_before`. Raises `ToolFailure` when there is another
    version by now; nothing is written then.
    """
    op = "created" if over is None else "modified"
    digest = hashlib.sha256(content).hexdigest()
    await context.notes.note_intent({"path": path, "sha256": digest, "op": op, "answer": answer})
    precondition = FilePrecondition(if_match=over, if_none_match=over is None)
    try:
        change = await context.files.put(
            context.ref, path, _once(content), precondition, tell=context.notes.tell_changes
        )
    except PreconditionError:
        done = await written_before(context, path)  # by another attempt, at the same time
        if done is None:
            raise changed(path) from None
        return done
    return await _noted(context, path, change, answer)


async def _noted(context: ToolContext, path: str, change: FileChange, answer: str) -> ToolResult:
    for name in {path, change.path}:  # they differ when the path leads through a link
        await context.notes.note_etag(name, change.etag)
    return ToolResult(answer)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
