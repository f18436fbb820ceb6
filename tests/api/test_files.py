"""The file routes from outside, over a real server and a real disk."""

import asyncio
import base64
import http.client
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from activities.ports import FileStore
from api.services import Services
from storage import leases, projects
from storage.engine import Database
from storage.event_log import EventReader
from storage.projects import NewProject
from tests.api.stand import Account, register
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState

ODD = ["src/[...slug].tsx", "a b/ünï.txt", "%2e%2e", "..foo", "new\nline", "100%", "q?#&", "日本語/😀", "a\\b", "-rf"]


class Files:
    """One project's file routes, as its owner."""

    def __init__(self, client: httpx.AsyncClient, account: Account, project_id: int, root: Path) -> None:
        self.client = client
        self.account = account
        self.project_id = project_id
        self.root = root
        self.base = f"/api/projects/{project_id}"

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = self.account.headers | options.pop("headers", {})
        return await self.client.request(method, f"{self.base}/{path}", headers=headers, **options)

    async def put(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("PUT", f"files/{quote(path, safe='/')}", content=content, headers=sent)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("GET", f"files/{quote(path, safe='/')}", headers=sent)

    async def tree(self) -> dict[str, str]:
        answer = await self.call("GET", "files")
        assert answer.status_code == 200, answer.text
        return {item["path"]: item["type"] for item in answer.json()["items"]}


@pytest.fixture
async def project(database: Database, account: Account, client: httpx.AsyncClient, files: FileStore) -> Files:
    async with database.transaction() as session:
        new = NewProject(account.user_id, "p", "", "static", None, None)
        project_id = (await projects.create(session, new, limit=10)).id
        await projects.set_state(session, project_id, ProjectState.READY)
    ref = ProjectRef(account.user_id, project_id)
    await files.create(ref, None)
    return Files(client, account, project_id, files.root(ref))


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


async def test_bytes_come_back_under_any_name(project: Files) -> None:
    for path in ODD:
        content = bytes(range(256)) + path.encode()
        made = await project.put(path, content)
        assert made.status_code == 201, made.text
        read = await project.get(path)
        assert (read.status_code, read.content, read.headers["etag"]) == (200, content, made.headers["etag"])
        assert (await project.tree())[path] == "file"
        assert (await project.put(path, b"again")).status_code == 204
        assert (await project.call("DELETE", f"files/{quote(path)}")).status_code == 204
        assert code(await project.get(path)) == (404, "not_found")


async def raw(project: Files, method: str, target: str, body: bytes = b"x") -> tuple[int, dict[str, Any]]:
    """Send the target exactly as it is: clients with manners would tidy it up first."""
    address = urlsplit(str(project.client.base_url)).netloc

    def send() -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.putrequest(method, f"{project.base}/files/{target}", skip_accept_encoding=True)
        connection.putheader("Authorization", project.account.headers["Authorization"])
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data or b"{}")

    return await asyncio.to_thread(send)


ESCAPES = [
    "../../../../etc/passwd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%2fx",
    "a/../../x",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "a//b",
    "./a",
    "a/.",
    "a%00b",
    "%ff%fe",
    "a/",
    "",
    "out/passwd",
    "out",
    "up/x",
    "x" * 256,
    quote("d/" * 2100) + "d",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
async def test_no_path_leaves_the_project(project: Files, method: str) -> None:
    (project.root / "out").symlink_to("/etc")
    (project.root / "up").symlink_to("..")
    before = sorted(project.root.parent.parent.rglob("*"))
    for target in ESCAPES:
        status, problem = await raw(project, method, target)
        assert (target, status) == (target, 422)
        assert method == "HEAD" or problem["code"] == "bad_path"
    assert [path for path in sorted(project.root.parent.parent.rglob("*")) if ".studio" not in path.parts] == before


async def test_bodies_cannot_leave_it_either(project: Files) -> None:
    (project.root / "out").symlink_to("/etc")
    await project.put("a", b"a")
    for path in ("../x", "/etc/x", "out/x", "a//b", "", ".studio/x", "a\0b"):
        for body in ({"from": "a", "to": path}, {"from": path, "to": "b"}):
            assert code(await project.call("POST", "files:move", json=body)) == (422, "bad_path")
        operations = [
            {"op": "put", "path": path, "content": "evil"},
            {"op": "delete", "path": path, "recursive": True},
            {"op": "move", "from": "a", "to": path},
        ]
        answer = await project.call("POST", "files:batch", json={"operations": operations})
        assert [item["error"]["code"] for item in answer.json()["items"]] == ["bad_path"] * 3
        if path != "" and not path.startswith(".studio"):
            assert code(await project.call("GET", "files", params={"path": path})) == (422, "bad_path")
    assert (project.root / "a").read_bytes() == b"a"


async def test_conditions(project: Files) -> None:
    first = (await project.put("a", b"1", If_None_Match="*")).headers["etag"]
    assert code(await project.put("a", b"2", If_None_Match="*")) == (412, "stale_file")
    second = (await project.put("a", b"2", If_Match=first)).headers["etag"]
    assert code(await project.put("a", b"3", If_Match=first)) == (412, "stale_file")
    assert code(await project.put("missing", b"", If_Match="*")) == (412, "stale_file")
    assert (await project.get("a", If_None_Match=second)).status_code == 304
    assert (await project.get("a", If_None_Match=first)).content == b"2"
    stale = await project.call("DELETE", "files/a", headers={"If-Match": first})
    assert code(stale) == (412, "stale_file")
    assert (await project.call("DELETE", "files/a", headers={"If-Match": second})).status_code == 204


async def test_of_concurrent_writers_exactly_one_wins(project: Files) -> None:
    etag = (await project.put("a", b"start")).headers["etag"]
    answers = await asyncio.gather(*(project.put("a", b"%d" % n, If_Match=etag) for n in range(10)))
    assert sorted(answer.status_code for answer in answers) == [204] + [412] * 9
    winner = next(n for n, answer in enumerate(answers) if answer.status_code == 204)
    assert (await project.get("a")).content == b"%d" % winner


RANGES = [
    ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
    ("bytes=7-", 206, b"789", "bytes 7-9/10"),
    ("bytes=-2", 206, b"89", "bytes 8-9/10"),
    ("bytes=5-500", 206, b"56789", "bytes 5-9/10"),
    ("bytes=0-1,3-4", 200, b"0123456789", None),
    ("bytes=5-2", 200, b"0123456789", None),
    ("lines=1-2", 200, b"0123456789", None),
    ("bytes=10-", 416, None, "bytes */10"),
    ("bytes=-0", 416, None, "bytes */10"),
]


async def test_ranges(project: Files) -> None:
    for value, status, content, content_range in RANGES:
        await project.put("digits", b"0123456789")
        answer = await project.get("digits", Range=value)
        assert (answer.status_code, answer.headers.get("content-range")) == (status, content_range)
        assert content is None or answer.content == content
        head = await project.call("HEAD", "files/digits")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")


SERVED = [
    ("index.html", "text/html; charset=utf-8", "attachment"),
    ("logo.svg", "image/svg+xml", "attachment"),
    ("app.js", "text/javascript; charset=utf-8", "attachment"),
    ("App.tsx", "text/plain; charset=utf-8", "inline"),
    ("logo.png", "image/png", "inline"),
    ("Makefile", "application/octet-stream", "attachment"),
]


async def test_a_projects_page_is_never_a_page_of_this_origin(project: Files) -> None:
    for path, kind, way in SERVED:
        await project.put(path, b"<script>alert(1)</script>")
        answer = await project.get(path)
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"].startswith(f"{way};")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]


async def test_sizes_are_bounded(project: Files) -> None:
    fits = bytes(10 * 1024 * 1024)
    assert (await project.put("fits", fits)).status_code == 201
    assert (await project.get("fits")).content == fits
    assert code(await project.put("over", fits + b"x")) == (413, "too_large")

    async def unannounced() -> Any:
        for _ in range(12):
            yield bytes(1024 * 1024)

    answer = await project.call("PUT", "files/over", content=unannounced())
    assert code(answer) == (413, "too_large")
    assert await project.tree() == {"fits": "file"}


async def test_an_upload_that_breaks_off_writes_nothing(project: Files) -> None:
    address = urlsplit(str(project.client.base_url))
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        f"PUT {project.base}/files/half HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        f"Authorization: {project.account.headers['Authorization']}\r\n\r\nhalf".encode()
    )
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.3)
    assert await project.tree() == {}
    assert list((project.root / ".studio/tmp").iterdir()) == []


async def test_a_fifo_is_a_conflict_and_no_wait(project: Files) -> None:
    os.mkfifo(project.root / "fifo")
    async with asyncio.timeout(10):
        assert code(await project.get("fifo")) == (409, "not_a_file")
        assert code(await project.put("fifo", b"")) == (409, "not_a_file")


async def test_directories(project: Files) -> None:
    await project.put("src/deep/a.txt", b"a")
    (project.root / "node_modules/react").mkdir(parents=True)
    assert await project.tree() == {
        "node_modules": "dir",
        "src": "dir",
        "src/deep": "dir",
        "src/deep/a.txt": "file",
    }
    shallow = await project.call("GET", "files", params={"path": "src", "depth": 1})
    assert [item["path"] for item in shallow.json()["items"]] == ["src/deep"]
    everything = await project.call("GET", "files", params={"all": "true"})
    assert ".studio" in [item["path"] for item in everything.json()["items"]]
    assert code(await project.get("src")) == (409, "is_directory")
    assert code(await project.call("DELETE", "files/src")) == (409, "is_directory")
    assert (await project.call("DELETE", "files/src", params={"recursive": "true"})).status_code == 204
    assert code(await project.call("GET", "files", params={"path": "src"})) == (404, "not_found")


async def test_moves(project: Files) -> None:
    await project.put("a", b"a")
    await project.put("b", b"b")
    assert code(await project.call("POST", "files:move", json={"from": "a", "to": "b"})) == (409, "exists")
    body = {"from": "a", "to": "b", "overwrite": True}
    assert (await project.call("POST", "files:move", json=body)).status_code == 204
    assert (await project.get("b")).content == b"a"
    assert code(await project.call("POST", "files:move", json=body)) == (404, "not_found")


async def test_batches(project: Files) -> None:
    etag = (await project.put("a", b"a")).headers["etag"]
    operations = [
        {"op": "put", "path": "b", "content": "é"},
        {"op": "put", "path": "c", "content_base64": base64.b64encode(b"\xff\x00").decode()},
        {"op": "move", "from": "b", "to": "d/e"},
        {"op": "delete", "path": "a", "if_match": etag},
        {"op": "delete", "path": "a"},
    ]
    atomic = await project.call("POST", "files:batch", json={"operations": operations, "atomic": True})
    assert [item["status"] for item in atomic.json()["items"]] == [409, 409, 409, 409, 404]
    assert await project.tree() == {"a": "file"}
    operations[3]["if_match"] = (await project.get("a")).headers["etag"]  # what was taken back has a new etag
    answer = await project.call("POST", "files:batch", json={"operations": operations})
    assert [item["status"] for item in answer.json()["items"]] == [201, 201, 204, 204, 404]
    assert ((await project.get("d/e")).content, (await project.get("c")).content) == ("é".encode(), b"\xff\x00")
    for bad in (
        {"op": "put", "path": "x"},
        {"op": "chmod", "path": "x"},
        {"op": "put", "path": "x", "content_base64": "é"},
    ):
        assert code(await project.call("POST", "files:batch", json={"operations": [bad]})) == (422, "validation_failed")


async def test_every_write_is_told_with_the_etag_after_it(project: Files, services: Services) -> None:
    made = await project.put("a", b"a")
    await project.call("POST", "files:move", json={"from": "a", "to": "b"})
    await project.call("POST", "files:batch", json={"operations": [{"op": "put", "path": "b", "content": "2"}]})
    await project.call("DELETE", "files/b")
    told = await events(services.events, project.project_id, 5)
    assert [(event["path"], event["op"], event["by"]) for event in told] == [
        ("a", "created", "user"),
        ("a", "deleted", "user"),
        ("b", "created", "user"),
        ("b", "modified", "user"),
        ("b", "deleted", "user"),
    ]
    assert f'"{told[0]["etag"]}"' == made.headers["etag"]
    async with services.database.transaction() as session:
        assert [lease.kind for lease in await leases.held(session, project.project_id)] == ["files"]


async def events(reader: EventReader, project_id: int, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        async for event in reader.follow(project_id, since=0, types=["file.changed"]):
            found.append(event.data)
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (ProjectState.PROVISIONING, (409, "project_not_ready")),
        (ProjectState.FAILED, (409, "project_not_ready")),
        (ProjectState.DELETING, (404, "not_found")),
    ],
)
async def test_files_of_a_project_that_is_not_ready(
    project: Files, database: Database, state: ProjectState, expected: tuple[int, str]
) -> None:
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE projects SET state = :state WHERE id = :id"), {"state": state, "id": project.project_id}
        )
    assert code(await project.get("a")) == expected
    assert code(await project.put("a", b"")) == expected


async def test_nobody_else_gets_in(project: Files) -> None:
    await project.put("a", b"secret")
    stranger = Files(project.client, await register(project.client), project.project_id, project.root)
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "files", {}),
        ("GET", "files/a", {}),
        ("HEAD", "files/a", {}),
        ("PUT", "files/a", {"content": b"evil"}),
        ("DELETE", "files/a", {}),
        ("POST", "files:move", {"json": {"from": "a", "to": "b"}}),
        ("POST", "files:batch", {"json": {"operations": []}}),
        ("GET", "archive", {}),
        ("PUT", "archive", {"content": b""}),
    ]
    for method, path, options in calls:
        assert (await stranger.call(method, path, **options)).status_code == 404
        assert (await project.client.request(method, f"{project.base}/{path}", **options)).status_code == 401
    assert (await project.get("a")).content == b"secret"


async def test_a_project_goes_out_and_in_again(project: Files) -> None:
    await project.put("src/run.sh", b"#!/bin/sh")
    (project.root / "src/run.sh").chmod(0o755)
    (project.root / "link").symlink_to("src/run.sh")
    archive = await project.call("GET", "archive")
    assert archive.headers["content-type"] == "application/gzip"
    assert (await project.call("DELETE", "files/src", params={"recursive": "true"})).status_code == 204
    answer = await project.call("PUT", "archive", content=archive.content)
    assert (answer.status_code, answer.json()) == (200, {"created": 1, "modified": 1}), answer.text
    assert (project.root / "src/run.sh").stat().st_mode & 0o777 == 0o755
    assert (await project.get("link")).content == b"#!/bin/sh"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("from/zip.txt", "zip")
    assert (await project.call("PUT", "archive", content=packed.getvalue())).status_code == 200
    assert (await project.get("from/zip.txt")).content == b"zip"


async def test_a_hostile_archive_writes_nothing(project: Files) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("fine.txt", "../evil.txt"):
            header = tarfile.TarInfo(name)
            header.size = 1
            tar.addfile(header, io.BytesIO(b"x"))
    assert code(await project.call("PUT", "archive", content=packed.getvalue())) == (422, "bad_archive")
    assert code(await project.call("PUT", "archive", content=b"no archive")) == (422, "bad_archive")
    assert await project.tree() == {}


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in {".", "..", ".studio", "node_modules"} and len(name.encode()) <= 255
)
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.binary(max_size=300), max_size=6)


async def test_any_tree_of_odd_names_comes_back(project: Files) -> None:
    # Examples are drawn beforehand: the fixtures of an asynchronous test live for one run of it.
    trees: list[dict[tuple[str, ...], bytes]] = []

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(TREES)
    def draw(tree: dict[tuple[str, ...], bytes]) -> None:
        trees.append(tree)

    draw()
    for tree in trees:
        wanted: dict[str, bytes] = {}
        for names, content in tree.items():
            answer = await project.put("/".join(names), content)
            if answer.status_code in {201, 204}:
                wanted["/".join(names)] = content
            else:  # one of the names was a file and a folder
                assert code(answer)[1] in {"not_a_directory", "is_directory"}
        found = {path for path, kind in (await project.tree()).items() if kind == "file"}
        assert found == set(wanted)
        for path, content in wanted.items():
            assert (await project.get(path)).content == content
        for name in {names[0] for names in tree}:
            await project.call("DELETE", f"files/{quote(name, safe='')}", params={"recursive": "true"})
