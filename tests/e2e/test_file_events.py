"""Who changes a file, over the API or from inside: the log tells it once, and by whom."""

import time

from tests.e2e.studio import Project, Studio
from tests.e2e.tail import Seen, Tail

QUIET_S = 1.0
"""Longer than the watch gathers: what is told twice has been told by then."""


def test_each_change_is_told_once_by_who_made_it(site: Project, studio: Studio) -> None:
    site.visit()
    since = last_seq(site)
    with Tail(site, since=since) as tail:
        asked = time.monotonic()
        etag = site.put("notes/api.txt", "one").headers["etag"]
        told = changed(tail, "notes/api.txt", "created")
        studio.tell("PUT → its event", told.at - asked)
        assert told.data == {"path": "notes/api.txt", "op": "created", "etag": etag.strip('"'), "by": "user"}
        site.put("notes/api.txt", "two")
        changed(tail, "notes/api.txt", "modified")

        asked = time.monotonic()
        site.run("mkdir -p deep/er && echo hi > deep/er/inside.txt && echo more >> notes/api.txt && rm favicon.svg")
        told = changed(tail, "deep/er/inside.txt", "created")
        studio.tell("write inside the container → its event", told.at - asked)
        assert told.data["etag"] == site.call("GET", "/files/deep/er/inside.txt").headers["etag"].strip('"')
        tail.wait(lambda seen: seen.data["path"] == "notes/api.txt" and seen.data["by"] == "container", "more")
        site.run(
            "mv deep/er/inside.txt deep/moved.txt && rm notes/api.txt && mkdir node_modules/x && touch node_modules/x/y"
        )
        changed(tail, "deep/moved.txt", "created")
        changed(tail, "notes/api.txt", "deleted")
        assert site.call("DELETE", "/files/deep/moved.txt").status_code == 204
        changed(tail, "deep/moved.txt", "deleted")
        site.run("mkdir -p folder/below && touch folder/below/a")
        changed(tail, "folder/below/a", "created")
        assert site.call("DELETE", "/files/folder?recursive=true").status_code == 204
        changed(tail, "folder", "deleted")
        time.sleep(QUIET_S)

    seen = tail.seen
    assert [event.seq for event in seen] == list(range(since + 1, since + 1 + len(seen)))
    assert sorted((event.data["path"], event.data["op"], event.data["by"]) for event in seen) == [
        ("deep/er/inside.txt", "created", "container"),
        ("deep/er/inside.txt", "deleted", "container"),
        ("deep/moved.txt", "created", "container"),
        ("deep/moved.txt", "deleted", "user"),
        ("favicon.svg", "deleted", "container"),
        ("folder", "deleted", "user"),
        ("folder/below/a", "created", "container"),
        ("notes/api.txt", "created", "user"),
        ("notes/api.txt", "deleted", "container"),
        ("notes/api.txt", "modified", "container"),
        ("notes/api.txt", "modified", "user"),
    ]


def last_seq(project: Project) -> int:
    with Tail(project) as tail:
        tail.wait_state("dev_server.state", "running")
        time.sleep(QUIET_S)
        return tail.seen[-1].seq


def changed(tail: Tail, path: str, op: str) -> Seen:
    return tail.wait(lambda seen: (seen.data["path"], seen.data["op"]) == (path, op), f"{op} {path}", timeout_s=10)
