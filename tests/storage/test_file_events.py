"""What of a watcher's changes the log has told already."""

from typing import Any

from storage import event_log
from storage.engine import Database
from storage.file_events import SeenChange, untold
from tests.storage.records import new_project
from workflows.contracts.events import EventType, NewEvent


async def tell(database: Database, project_id: int, *told: tuple[str, str, str | None]) -> None:
    events = [
        NewEvent(project_id=project_id, type=EventType.FILE_CHANGED, data={"path": path, "op": op, "etag": etag})
        for path, op, etag in told
    ]
    async with database.transaction() as session:
        event_log.append(session, events)


async def news(database: Database, project_id: int, *seen: Any) -> list[tuple[str, str, str | None]]:
    async with database.transaction() as session:
        found = await untold(session, project_id, [SeenChange(*change) for change in seen])
    return [(change.path, change.op, change.etag) for change in found]


async def test_a_version_that_was_told_is_no_news_be_it_the_last_or_not(database: Database) -> None:
    project = await new_project(database)
    await tell(database, project, ("a", "created", "1"), ("a", "modified", "2"), ("b", "modified", "1"))
    for etag in ("1", "2"):
        assert await news(database, project, ("a", "modified", etag)) == []
    assert await news(database, project, ("a", "modified", "3"), ("b", "modified", "2"), ("c", "created", "1")) == [
        ("a", "modified", "3"),
        ("b", "modified", "2"),
        ("c", "created", "1"),
    ]
    other = await new_project(database)
    assert await news(database, other, ("a", "created", "1")) == [("a", "created", "1")]


async def test_a_deletion_is_news_unless_it_was_told(database: Database) -> None:
    project = await new_project(database)
    await tell(database, project, ("a", "deleted", None), ("b", "deleted", None), ("b", "created", "2"))
    seen = [(path, "deleted", None) for path in "abc"]  # of c the log has never said anything
    assert await news(database, project, *seen) == [("b", "deleted", None), ("c", "deleted", None)]


async def test_a_folders_deletion_tells_of_all_that_was_in_it(database: Database) -> None:
    project = await new_project(database)
    await tell(database, project, ("a/b/c", "created", "1"), ("a", "deleted", None), ("ab/c", "created", "1"))
    gone = [(path, "deleted", None) for path in ("a/b/c", "a/d", "ab/c")]
    assert await news(database, project, *gone) == [("ab/c", "deleted", None)]
    again = [("a/b/c", "modified", "2"), ("a/d", "created", "2")]
    assert await news(database, project, *again) == [("a/b/c", "created", "2"), ("a/d", "created", "2")]
    await tell(database, project, *[(path, "created", "2") for path in ("a/b/c", "a/d")])
    assert await news(database, project, *gone) == gone


async def test_what_came_and_went_between_two_looks_is_told_in_the_logs_words(database: Database) -> None:
    project = await new_project(database)
    await tell(database, project, ("a", "created", "1"), ("b", "created", "1"), ("b", "deleted", None))
    assert await news(database, project, ("a", "created", "2"), ("b", "modified", "2")) == [
        ("a", "modified", "2"),
        ("b", "created", "2"),
    ]
