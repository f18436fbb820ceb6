"""A real browser on pages of a server of these tests."""

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from activities import page_browser
from activities.addresses import Endpoint, PublicResolver, Resolver
from activities.tools.tool import (
    DevServerView,
    PreviewAccess,
    PreviewAddress,
    ToolFailure,
    ToolKind,
    ToolResult,
)
from activities.tools.view_page import ViewPage, ViewPageArguments
from tests.tools.site import Site, answer, moved, site
from tests.tools.viewing import RunningServer, context

TOKEN = "pvt_of_the_test"


class SitePreview(PreviewAccess):
    """The preview is the test's own server."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> PreviewAddress:
        return PreviewAddress(f"http://app.localhost:{self.port}", TOKEN)


class OneOutside(Resolver):
    """One host of the public internet is at hand; every other one is judged as in production."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def resolve(self, host: str, port: int) -> list[Endpoint]:
        if host == "outside.example":
            return [Endpoint("127.0.0.1", self.port)]
        return await PublicResolver().resolve(host, port)


def page(body: str) -> bytes:
    return answer(f"<!doctype html><title>My app</title>{body}".encode(), "text/html; charset=utf-8")


@asynccontextmanager
async def app(body: str, **others: bytes) -> AsyncIterator[Site]:
    """A preview behind a gate that trades the token for a cookie."""
    pages = {"/": page(body), "/favicon.ico": answer(b""), **{f"/{name}": one for name, one in others.items()}}
    gate = {
        f"{path}?token={TOKEN}": answer(
            b"", "", "302 Found", f"Location: {path}", f"Set-Cookie: pass={TOKEN}; HttpOnly; Path=/"
        )
        for path in pages
    }
    async with site({**pages, **gate}) as server:
        yield server


async def view(server: Site, resolver: Resolver | None = None, **arguments: Any) -> ToolResult:
    arguments = {"wait_s": 0.5, "width": 400, "height": 300, **arguments}
    return await ViewPage(resolver=resolver).run(context(SitePreview(server.port)), ViewPageArguments(**arguments))


@pytest.mark.browser
async def test_a_page_is_told_with_all_that_it_complains_of() -> None:
    body = """<h1>Hello</h1><p hidden>unseen</p><p>w\u00f6rld</p><script>
        console.error('an error', 7); console.warn('a warning'); console.log('chatter');
        fetch('/missing'); setTimeout(() => { undefined_thing() });
        </script>"""
    async with app(body) as server:
        result = await view(server)
    lines = result.text.splitlines()
    assert lines[:3] == ["Title: My app", "Path: /", "HTTP status: 200"]
    assert "Hello\n\nw\u00f6rld" in result.text
    assert "unseen" not in result.text
    assert "- console error: an error 7" in lines
    assert "- console warning: a warning" in lines
    assert "chatter" not in result.text
    assert "Failed to load" not in result.text
    assert "undefined_thing is not defined" in result.text
    assert any(line.startswith("- failed request: GET") and line.endswith("/missing: status 404") for line in lines)
    assert TOKEN not in result.text
    assert result.image is not None
    assert result.image.startswith(b"\x89PNG\r\n")
    assert not result.failed


@pytest.mark.browser
async def test_nothing_that_is_near_can_be_reached_from_a_page() -> None:
    async with site({}) as near, site({"/lib.js": answer(b"document.title = 'lib'", "text/javascript")}) as outside:
        addresses = [f"//127.0.0.1:{near.port}", f"//localhost:{near.port}", f"//2130706433:{near.port}"]
        addresses += [f"//[::1]:{near.port}", f"//user9-project9.localhost:{near.port}", f"//0.0.0.0:{near.port}"]
        body = "<h1>Hi</h1><script src='http://outside.example/lib.js'></script>"
        body += "".join(f"<img src='http:{address}/img'>" for address in addresses)
        target = addresses[0]
        body += f"<iframe src='http:{target}/frame'></iframe><link rel=preconnect href='http:{target}'>"
        body += f"<script>fetch('http:{target}/f', {{mode: 'no-cors'}}); new WebSocket('ws:{target}/w')</script>"
        async with app(f"{body}<img src='/moved'>", moved=moved(f"http:{target}/redirected")) as server:
            result = await view(server, OneOutside(outside.port))
    assert near.requests == []
    assert near.connections == 0
    assert result.text.startswith("Title: lib\n")
    assert "Hi" in result.text
    assert "isn't on the public internet" in result.text
    (request,) = outside.requests
    assert TOKEN not in request
    assert "cookie" not in request.lower()


@pytest.mark.browser
@pytest.mark.parametrize("way", ["redirect", "script"])
async def test_a_page_that_leads_elsewhere_is_not_followed(way: str) -> None:
    async with site({"/inner": answer(b"secret", "text/html")}) as near:
        target = f"http://127.0.0.1:{near.port}/inner"
        async with app(f"<script>location = '{target}'</script>", away=moved(target)) as server:
            try:
                result = await view(server, path="/away" if way == "redirect" else "/", wait_s=1)
            except ToolFailure as failure:
                result = ToolResult(str(failure), failed=True)
    assert near.connections == 0
    assert result.failed
    assert result.image is None
    assert "secret" not in result.text
    assert "isn't on the public internet" in result.text
    assert TOKEN not in result.text


@pytest.mark.browser
async def test_a_page_that_keeps_itself_busy_is_left() -> None:
    async with app("<script>setTimeout(() => { while (true); }, 100)</script>") as server:
        result = await view(server)
    assert "too busy to be read" in result.text
    assert "HTTP status: 200" in result.text


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where browsers are started from."""
    made: list[Path] = []
    prepare = page_browser._prepare

    def note(program: str, port: int) -> Path:
        made.append(prepare(program, port))
        return made[-1]

    monkeypatch.setattr(page_browser, "_prepare", note)
    return made


def processes(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(path.parent.name)
    return found


@pytest.mark.browser
async def test_a_cancelled_look_leaves_nothing_and_its_browser_had_nothing(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "of the service")
    async with app("<h1>Hi</h1>") as server:
        looking = asyncio.create_task(view(server, wait_s=10))
        async with asyncio.timeout(60):
            while not any("GET / " in request for request in server.requests):
                assert not looking.done(), looking.result()
                await asyncio.sleep(0.05)
        (folder,) = folders
        process = Path("/proc") / (folder / "pid").read_text().strip()
        assert process.name in processes(folder)
        for pid in processes(folder):
            assert b"SECRET_KEY" not in (Path("/proc") / pid / "environ").read_bytes()
        if os.geteuid() == 0:
            owner = pwd.getpwnam("nobody").pw_uid
            assert f"Uid:\t{owner}\t{owner}\t{owner}\t{owner}" in (process / "status").read_text()
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
    assert not folder.exists()
    async with asyncio.timeout(30):
        while processes(folder):  # noqa: ASYNC110 -- processes tell nobody of their end
            await asyncio.sleep(0.05)


@pytest.mark.browser
async def test_a_browser_that_does_not_start_is_said_to_be_so(tmp_path: Path) -> None:
    program = shutil.which("false")
    async with app("") as server:
        with pytest.raises(ToolFailure, match="doesn't start"):
            await ViewPage(program=program).run(context(SitePreview(server.port)), ViewPageArguments())


@pytest.mark.parametrize("visitor", ["yes", "exit 1", "kill -9 $$", "echo '{}x'"])
async def test_a_visitor_that_babbles_or_dies_harms_nobody(
    visitor: str, monkeypatch: pytest.MonkeyPatch, folders: list[Path]
) -> None:
    monkeypatch.setattr(page_browser, "VISITOR", ("/bin/sh", "-c", visitor))
    with pytest.raises(ToolFailure, match="ended without an answer"):
        await ViewPage(program="/bin/false").run(context(SitePreview(1)), ViewPageArguments())
    assert not folders[0].exists()


async def test_without_a_browser_other_means_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.tools.view_page.find_browser", lambda: None)
    server = RunningServer()
    with pytest.raises(ToolFailure, match="No browser is installed"):
        await ViewPage().run(context(SitePreview(1), server), ViewPageArguments())
    assert server.started == 0


async def test_a_server_that_failed_is_told_instead() -> None:
    server = RunningServer(DevServerView("failed", "The command ended with exit code 1.", 1, "oh no"))
    result = await ViewPage(program="/bin/false").run(context(SitePreview(1), server), ViewPageArguments())
    assert result.failed
    assert "exit code 1" in result.text
    assert "oh no" in result.text


def test_looking_has_no_effects() -> None:
    assert ViewPage.kind is ToolKind.LOOK
    assert not ViewPage().has_effects(ViewPageArguments())


@pytest.mark.parametrize("path", ["", "x", "http://elsewhere/", "/a b", "/a\n", "\\\\x", "/" + "a" * 2000])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        ViewPageArguments(path=path)


async def run(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


@pytest.mark.browser
async def test_networks_that_come_and_go_meanwhile_dont_disturb_a_page() -> None:
    """Every container that starts brings one; a browser that hears of it drops the requests under way."""
    if os.geteuid() != 0:
        pytest.skip("only root makes networks")

    async def come_and_go() -> None:
        one, other = f"studio{os.getpid() % 10_000_000}", f"oidust{os.getpid() % 10_000_000}"
        while True:
            await run("ip", "link", "add", one, "type", "veth", "peer", "name", other)
            try:
                await run("ip", "address", "add", "198.51.100.7/32", "dev", one)
                await run("ip", "link", "set", other, "up")
                await run("ip", "link", "set", one, "up")
                await asyncio.sleep(0.2)
            finally:
                await run("ip", "link", "delete", one)

    ask = "Promise.all(Array.from({length: 40}, () => fetch('/data')))"  # most of them wait for a connection
    body = f"<script>(async () => {{ for (;;) {{ await {ask}; }} }})()</script>"
    async with app(body, data=answer(b"{}")) as server:
        changing = asyncio.create_task(come_and_go())
        try:
            result = await view(server, wait_s=4)
        finally:
            changing.cancel()
            with suppress(asyncio.CancelledError):
                await changing
    assert "NETWORK_CHANGED" not in result.text
    assert len(server.requests) > 40
