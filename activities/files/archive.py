"""Archives that come in: read to the end and checked as a whole before anything is written to the project.

Refused with `bad_archive`: a name that is absolute, has `..` or can't be a name; a link that leads out; devices,
FIFOs; one path as file and folder; encryption and rare compressions (their memory can't be bounded); more than
20,000 files or 200 MiB unpacked. Names in `.studio/` and `node_modules/` are skipped, as exports leave them out.
Links inside the project are kept; a hard link becomes a copy.
"""

import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, BinaryIO

from activities.files.beneath import parse_path
from activities.files.trees import NODE_MODULES, leads_out
from workflows.contracts.errors import BadPathError, InvalidError
from workflows.contracts.names import STUDIO_DIRECTORY

MAX_FILES = 20_000
MAX_UNPACKED = 200 * 1024 * 1024
_MAX_MEMBERS = 10 * MAX_FILES
"""Skipped ones included: a bound on the time that reading takes."""
_MAX_TAR = MAX_UNPACKED + _MAX_MEMBERS * 1024
_MAX_TAR_READ = 1024 * 1024
_MAX_ZIP_READ = 16 * 1024 * 1024
_MAX_LINK = 4096
_PIECE = 256 * 1024

Stage = Callable[[Iterator[bytes]], str]
"""Writes a member's bytes somewhere and gives the name under which they lie there."""


def bad_archive(reason: str) -> InvalidError:
    """The one code for all that is wrong with an archive."""
    return InvalidError(f"The archive is refused: {reason}.", code="bad_archive")


@dataclass(frozen=True)
class Member:
    """One entry of an archive, checked. `staged`: where a file's bytes lie; `link`: a link's text."""

    path: str
    mode: int = 0o644
    staged: str | None = None
    link: str | None = None

    @property
    def is_directory(self) -> bool:
        """Neither file nor link."""
        return self.staged is None and self.link is None


@dataclass
class Contents:
    """What an archive holds, by path; the last of several files with one name counts."""

    members: dict[str, Member] = field(default_factory=dict)
    size: int = 0
    seen: int = 0

    def count(self) -> None:
        """One more member was read, whether it is kept or not."""
        self.seen += 1
        if self.seen > _MAX_MEMBERS or len(self.members) > MAX_FILES:
            raise bad_archive(f"it has more than {MAX_FILES:,} files")

    def limited(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces, counted as they really come, whatever a header promised."""
        for piece in pieces:
            self.size += len(piece)
            if self.size > MAX_UNPACKED:
                raise bad_archive(f"it unpacks to more than {MAX_UNPACKED // 1024 // 1024} MiB")
            yield piece

    def add(self, member: Member) -> None:
        """Keep the member. Raises when the same path was something else before."""
        before = self.members.get(member.path)
        if before is not None and _kind(before) != _kind(member):
            raise bad_archive(f"{member.path!r} comes twice, as different things")
        self.members[member.path] = member

    def check(self) -> None:
        """Raise when a file or a link is also used as a folder."""
        for path in self.members:
            parent = path.rpartition("/")[0]
            while parent:
                holder = self.members.get(parent)
                if holder is not None and not holder.is_directory:
                    raise bad_archive(f"{parent!r} is a file or link, and {path!r} lies in it")
                parent = parent.rpartition("/")[0]


def read_archive(archive: BinaryIO, scratch: BinaryIO, stage: Stage) -> Contents:
    """Read, check and stage all members. `scratch`: an empty temporary file for the unpacked tar.

    Raises `InvalidError` with code `bad_archive`.
    """
    magic = archive.read(4)
    archive.seek(0)
    try:
        if magic[:2] == b"\x1f\x8b":
            _gunzip(archive, scratch)
            contents = _read_tar(scratch, stage)
        elif magic in {b"PK\x03\x04", b"PK\x05\x06"}:
            contents = _read_zip(archive, stage)
        else:
            raise bad_archive("it is neither .tar.gz nor .zip")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        # ValueError: impossible numbers in headers; NotImplementedError: zip features that Python doesn't have
        raise bad_archive("it is damaged") from error
    contents.check()
    return contents


class _Reader(io.RawIOBase):
    """A file of which nobody reads a large piece at once: headers can't fill the memory."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        super().__init__()
        self._file = file
        self._most = most

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self._most + 1 if size < 0 else min(size, self._most + 1))
        if len(data) > self._most:
            raise bad_archive("its headers are too large")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _gunzip(archive: BinaryIO, target: BinaryIO) -> None:
    total = 0
    complete = False
    unpacker = zlib.decompressobj(wbits=31)
    while packed := archive.read(_PIECE):
        while packed:
            piece = unpacker.decompress(packed, _PIECE)
            total += len(piece)
            if total > _MAX_TAR:
                raise bad_archive(f"it unpacks to more than {MAX_UNPACKED // 1024 // 1024} MiB")
            target.write(piece)
            packed = unpacker.unconsumed_tail
            complete = unpacker.eof
            if complete:  # another member may follow, as gzip allows
                packed = unpacker.unused_data.lstrip(b"\0")
                unpacker = zlib.decompressobj(wbits=31)
    if not complete:
        raise EOFError("cut off")
    target.seek(0)


def _read_tar(file: BinaryIO, stage: Stage) -> Contents:
    contents = Contents()
    files: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(fileobj=_Reader(file, _MAX_TAR_READ), mode="r:", encoding="utf-8", errors="strict") as tar:
        for header in tar:
            contents.count()
            path = _member_path(header.name)
            if path is None:
                continue
            if header.isdir():
                contents.add(Member(path))
            elif header.issym():
                contents.add(Member(path, link=_link(path, header.linkname)))
            elif header.isreg() or header.islnk():
                source = header if header.isreg() else files.get(header.linkname.removeprefix("./"))
                if source is None or source.issparse():
                    raise bad_archive(f"{path!r} is a hard link out of it, or sparse")
                files[path] = source
                staged = stage(contents.limited(_pieces(tar.extractfile(source))))
                contents.add(Member(path, _mode(source.mode), staged))
            else:
                raise bad_archive(f"{path!r} is a device or a FIFO")
    return contents


def _read_zip(file: BinaryIO, stage: Stage) -> Contents:
    contents = Contents()
    with zipfile.ZipFile(_Reader(file, _MAX_ZIP_READ)) as archive:
        for header in archive.infolist():
            contents.count()
            path = _member_path(header.filename)
            if path is None:
                continue
            if header.flag_bits & 1 or header.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise bad_archive(f"{path!r} is encrypted or packed in a rare way")
            mode = header.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if header.is_dir():
                contents.add(Member(path))
            elif kind == stat.S_IFLNK:
                if header.file_size > _MAX_LINK:
                    raise bad_archive(f"the link {path!r} is too long")
                contents.add(Member(path, link=_link(path, archive.read(header).decode())))
            elif kind in {0, stat.S_IFREG}:
                staged = stage(contents.limited(_pieces(archive.open(header))))
                contents.add(Member(path, _mode(mode), staged))
            else:
                raise bad_archive(f"{path!r} is a device or a FIFO")
    return contents


def _member_path(name: str) -> str | None:
    """The name as a path in the project, None for what is skipped."""
    path = name.rstrip("/")
    while path.startswith("./"):
        path = path[2:]
    if path in {"", "."} and not name.startswith("/"):
        return None
    try:
        segments = parse_path(path if not name.startswith("/") else name)
    except BadPathError as error:
        raise bad_archive(f"the name {name!r} can't be a path in a project") from error
    if segments[0] == STUDIO_DIRECTORY or NODE_MODULES in segments:
        return None
    return path


def _link(path: str, text: str) -> str:
    """The link's text, when following it by its letters stays inside."""
    too_long = "\0" in text or len(text.encode(errors="replace")) >= _MAX_LINK
    if too_long or leads_out(text, path.count("/")):
        raise bad_archive(f"the link {path!r} leads out of it")
    return text


def _pieces(file: IO[bytes] | None) -> Iterator[bytes]:
    if file is None:
        raise bad_archive("a file in it has no content")
    with file:
        while piece := file.read(_PIECE):
            yield piece


def _kind(member: Member) -> str:
    return "dir" if member.is_directory else "link" if member.link is not None else "file"


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o111 else 0o644
