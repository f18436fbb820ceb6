"""Brings an archive's checked members to their places: all, or none. Blocking, under the project's lock."""

from activities.files.archive import Contents, Member, bad_archive
from activities.files.writing import Journal, ProjectWriter
from activities.ports import FileChange, FilePrecondition
from workflows.contracts.errors import BadPathError, ConflictError, StudioError

_ANY = FilePrecondition()


def place_members(files: ProjectWriter, contents: Contents) -> list[FileChange]:
    """Write every member over the project. What the project's own tree makes impossible is a `bad_archive` too."""
    members = sorted(contents.members.values(), key=lambda member: member.path)
    journal = Journal()
    try:
        for member in members:
            if member.staged is not None:
                files.check_put(member.path, _ANY)
        changes = [change for member in members if (change := _place(files, member, journal)) is not None]
        files.sync()
    except (BadPathError, ConflictError) as error:
        journal.roll_back()
        raise bad_archive(f"it doesn't fit over this project: {error.detail}") from error
    except (StudioError, OSError):
        journal.roll_back()
        raise
    finally:
        files.discard_names(journal.discarded)
    return changes


def _place(files: ProjectWriter, member: Member, journal: Journal) -> FileChange | None:
    if member.link is not None:
        return files.make_link(member.path, member.link, journal=journal)
    if member.staged is None:
        files.make_directory(member.path, journal=journal)
        return None
    temp = files.reopen_temp(member.staged)
    try:
        return files.commit(temp, member.path, _ANY, journal=journal, mode=member.mode)
    finally:
        files.close_temp(temp)
