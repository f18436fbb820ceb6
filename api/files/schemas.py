"""Files as clients see and write them."""

import base64
import binascii
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from activities.ports import DeleteFile, FileOperation, FilePrecondition, MoveFile, PutFile

PathText = Annotated[str, StringConstraints(max_length=4096)]
_MAX_OPERATIONS = 1000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileOut(BaseModel):
    """An entry of a project's tree. `etag`: files only, as in the `ETag` header but without its quotes."""

    model_config = ConfigDict(from_attributes=True)

    path: str
    type: Literal["file", "dir", "symlink"]
    size: int
    modified_at: datetime
    etag: str | None


class FilesOut(BaseModel):
    """Entries sorted by path. `truncated`: there are more than 10,000; the upper levels come first."""

    items: list[FileOut]
    truncated: bool


class ChangeOut(BaseModel):
    """What a write did to one path; `etag` is that of the file now, null after a deletion."""

    model_config = ConfigDict(from_attributes=True)

    path: str
    op: Literal["created", "modified", "deleted"]
    etag: str | None


class MoveIn(_Body):
    """Rename within the project; missing parents of `to` are made."""

    source: PathText = Field(alias="from")
    target: PathText = Field(alias="to")
    overwrite: bool = False


class PutOperation(_Body):
    """Write a whole file: `content` as text, or any bytes as `content_base64`."""

    op: Literal["put"]
    path: PathText
    content: str | None = None
    content_base64: str | None = None
    if_match: str | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.content is None) == (self.content_base64 is None):
            raise ValueError("give either content or content_base64")
        self.bytes_to_write()
        return self

    def bytes_to_write(self) -> bytes:
        """The file's bytes."""
        if self.content is not None:
            try:
                return self.content.encode()
            except UnicodeEncodeError:
                raise ValueError("content has a lone surrogate; send content_base64") from None
        try:
            return base64.b64decode(self.content_base64 or "", validate=True)
        except binascii.Error:
            raise ValueError("content_base64 isn't base64") from None


class DeleteOperation(_Body):
    """Delete a file or a link; a directory only with `recursive`."""

    op: Literal["delete"]
    path: PathText
    recursive: bool = False
    if_match: str | None = None


class MoveOperation(MoveIn):
    """Rename within the project."""

    op: Literal["move"]


class BatchIn(_Body):
    """Operations in order. `atomic`: all or none."""

    operations: list[Annotated[PutOperation | DeleteOperation | MoveOperation, Field(discriminator="op")]] = Field(
        max_length=_MAX_OPERATIONS
    )
    atomic: bool = False


class ErrorOut(BaseModel):
    """Why an operation failed, as its own request would have been answered."""

    code: str
    detail: str


class ResultOut(BaseModel):
    """One operation's result. `status`: what its own request would have been answered with."""

    status: int
    changes: list[ChangeOut] = []
    error: ErrorOut | None = None


class BatchOut(BaseModel):
    """Results in the order of the operations."""

    items: list[ResultOut]


class ImportOut(BaseModel):
    """How many files an archive brought."""

    created: int
    modified: int


def to_operation(item: PutOperation | DeleteOperation | MoveOperation) -> FileOperation:
    """The operation as the file store takes it."""
    match item:
        case PutOperation():
            return PutFile(item.path, item.bytes_to_write(), FilePrecondition(if_match=unquoted(item.if_match)))
        case DeleteOperation():
            condition = FilePrecondition(if_match=unquoted(item.if_match))
            return DeleteFile(item.path, recursive=item.recursive, precondition=condition)
        case MoveOperation():
            return MoveFile(item.source, item.target, overwrite=item.overwrite)


def unquoted(etags: str | None) -> str | None:
    """Etags of an `If-Match` without their quotes. A weak one (`W/`) keeps its mark, and so never matches."""
    return None if etags is None else ",".join(etag.strip().strip('"') for etag in etags.split(","))
