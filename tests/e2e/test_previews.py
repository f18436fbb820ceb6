"""Previews in a real browser: frames, cookies, other origins, and the pages for who may not see the app."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.e2e.browser import Tab, shoot
from tests.e2e.studio import PASSWORD, Person, Project, Studio

pytestmark = pytest.mark.browser


def enter(tabs: BrowserContext, service: Project) -> Page:
    tab = Tab(tabs)
    tab.open(service.preview_link(), "Your service is live")
    return tab.page


def test_every_template_looks_as_it_should(ann: Person, tabs: BrowserContext, studio: Studio, service: Project) -> None:
    tab = Tab(tabs)
    page = tab.page
    problems: list[str] = []
    page.on("console", lambda line: problems.append(line.text) if line.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    tab.open(service.preview_link(), "Your service is live")
    expect(page.locator("#message")).to_contain_text("Hello, world!")
    shoot(page, studio.shots, "fastapi")
    site = ann.start("static")
    site.visit()  # a cluster's gateway hears of it a moment after it runs
    tab.open(site.preview_link(), "Your site is live")
    page.get_by_role("button").click()
    expect(page.get_by_role("button")).to_have_text("Clicked 1 time")
    shoot(page, studio.shots, "static")
    assert [problem for problem in problems if "ERR_NETWORK_CHANGED" not in problem] == []


def test_a_preview_lives_in_a_frame_of_another_site(ann: Person, tabs: BrowserContext, studio: Studio) -> None:
    project = ann.start("vite-react")
    project.visit()
    with site(lambda: f'<iframe src="{project.preview_link()}" width="900" height="500"></iframe>') as url:
        tab = Tab(tabs)
        tab.page.goto(url)
        frame = tab.page.frame_locator("iframe")
        tab.shows(frame.get_by_role("heading"), "Your app is live")
        frame.get_by_role("button").click()
        shoot(tab.page, studio.shots, "framed")
        source = project.call("GET", "/files/src/App.jsx").text
        project.put("src/App.jsx", source.replace("Your app is live", "Framed and followed"))
        expect(frame.get_by_role("heading")).to_have_text("Framed and followed")
        expect(frame.get_by_role("button")).to_have_text("Clicked 1 time")


def test_only_the_apps_own_cookies_reach_the_app(service: Project, ann: Person, tabs: BrowserContext) -> None:
    sign_in(tabs.new_page(), ann)
    page = enter(tabs, service)
    page.evaluate("document.cookie = 'theirs=1; path=/'")
    page.goto(f"http://{service.host}/echo")
    seen = page.evaluate("JSON.parse(document.body.innerText)")
    assert seen["cookie"] == "theirs=1"
    assert not {"authorization", "x-preview-token"} & seen.keys()
    stored = {cookie["name"]: cookie for cookie in tabs.cookies() if cookie["name"].startswith("studio_")}
    assert {"studio_preview", "studio_preview_frame", "studio_refresh"} == stored.keys()
    assert {cookie["domain"] for name, cookie in stored.items() if "preview" in name} == {
        service.host.partition(":")[0]
    }
    assert all(cookie["httpOnly"] for cookie in stored.values())
    assert (stored["studio_refresh"]["sameSite"], stored["studio_refresh"]["path"]) == ("Strict", "/api/auth")
    assert page.evaluate("document.cookie") == "theirs=1"

    # Sent by a program that puts all of it into one request, too.
    cookie = "; ".join(["theirs=1", *(f"{name}={found['value']}" for name, found in stored.items())])
    direct = service.knock(
        "/echo", Cookie=cookie, Authorization=f"Bearer {ann.token}", X_Preview_Token=service.preview_token()
    )
    assert direct.json()["cookie"] == "theirs=1"
    assert not {"authorization", "x-preview-token"} & direct.json().keys()
    assert direct.json()["x-preview-user"] == str(ann.id)
    theirs = service.knock("/echo", Cookie=cookie, Authorization="Bearer of-the-app")
    assert theirs.json()["authorization"] == "Bearer of-the-app"


def test_a_preview_can_do_nothing_in_its_visitors_name(
    service: Project, ann: Person, tabs: BrowserContext, studio: Studio
) -> None:
    sign_in(tabs.new_page(), ann)
    before = refresh_cookie(tabs)
    page = enter(tabs, service)
    for script in (
        "fetch(api + '/api/auth/refresh', {method: 'POST', credentials: 'include'})",
        "fetch(api + '/api/auth/refresh', {method: 'POST', credentials: 'include', mode: 'no-cors'})",
        "fetch(api + '/api/users/me', {credentials: 'include'})",
        "fetch(api + '/api/templates')",
    ):
        asked = f"api => {script}.then(answer => answer.text(), error => error.name)"
        assert page.evaluate(asked, studio.api) == "TypeError", script
    assert refresh_cookie(tabs) == before
    page.goto(f"{studio.api}/docs")
    renewed = page.evaluate("fetch('/api/auth/refresh', {method: 'POST'}).then(r => r.status)")
    assert (renewed, refresh_cookie(tabs) != before) == (200, True)


def test_who_isnt_signed_in_is_told_where_to(
    service: Project, ben: Person, tabs: BrowserContext, studio: Studio
) -> None:
    page = tabs.new_page()
    answer = page.goto(f"http://{service.host}/deep/link")
    assert answer is not None
    assert answer.status == 401
    expect(page.get_by_role("heading")).to_have_text("This preview is private")
    expect(page.get_by_role("link")).to_have_attribute("href", studio.api)
    assert httpx.get(studio.stack.api, follow_redirects=True).status_code == 200
    assert "no-store" in answer.headers["cache-control"]
    shoot(page, studio.shots, "sign-in")
    page.emulate_media(color_scheme="dark")
    shoot(page, studio.shots, "sign-in-dark")
    assert "live" not in page.inner_text("body")
    gone = ben.make("static")
    link = gone.preview_link()
    assert gone.call("DELETE", headers={"Prefer": "wait=30"}).status_code == 200
    page.goto(link)
    expect(page.get_by_role("heading")).to_have_text("This preview is private")


def test_a_crash_is_shown_to_its_owner_with_a_way_on(ann: Person, tabs: BrowserContext, studio: Studio) -> None:
    project = ann.make("static")
    project.put("studio.toml", 'command = "echo first line; echo it needs a key >&2; exit 9"\n')
    tab = Tab(tabs)
    page = tab.page
    tab.open(project.preview_link(), "It isn't running")
    expect(page.locator("#text")).to_have_text("The command ended with exit code 9.")
    expect(page.locator("#log")).to_have_text("first line\nit needs a key\n")
    shoot(page, studio.shots, "crashed")
    project.put("studio.toml", 'command = "vite --configLoader native"\nport = 5173\n')
    page.get_by_role("button", name="Start again").click()
    tab.shows(page.get_by_role("heading"), "Your site is live")


def sign_in(page: Page, person: Person) -> None:
    """In the browser, on the API's own origin."""
    page.goto(f"{person.studio.api}/docs")
    status = page.evaluate(
        "form => fetch('/api/auth/login', {method: 'POST', body: new URLSearchParams(form)}).then(r => r.status)",
        {"username": person.email, "password": PASSWORD},
    )
    assert status == 200


def refresh_cookie(tabs: BrowserContext) -> str:
    return next(str(cookie["value"]) for cookie in tabs.cookies() if cookie["name"] == "studio_refresh")


@contextmanager
def site(body: Callable[[], str]) -> Iterator[str]:
    """A page on 127.0.0.1: to a browser another site than any `*.localhost`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<!doctype html><title>Site</title><h1>Another site</h1>{body()}".encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
