"""What a user gets from all this: sign up, create, watch, open, edit, stop, wake."""

import time

import pytest
from playwright.sync_api import BrowserContext, Page, Response, expect

from tests.e2e.browser import Tab, mark, shoot
from tests.e2e.studio import Person, Project, Studio
from tests.e2e.tail import Seen, Tail

pytestmark = pytest.mark.browser

HEADING = "Your app is live"
EDITED = "Changed without a reload"


def test_from_sign_up_to_a_page_that_follows_its_source(studio: Studio, ann: Person, tabs: BrowserContext) -> None:
    began = time.monotonic()
    created = ann.http.post("/api/projects", json={"name": "first"})
    assert created.status_code == 202, created.text
    assert created.json()["state"] == "provisioning"
    assert created.json()["template"] == "vite-react"
    project = Project(ann, created.json()["id"])

    with Tail(project) as tail:
        started = project.call("POST", "/start")
        assert (started.status_code, started.json()["dev_server"]["state"]) == (202, "starting")
        running = tail.wait_state("dev_server.state", "running")
        stages(tail.seen)
        studio.tell("create → running", running.at - began)

        tab = Tab(tabs)
        open_preview(tab, project)
        shoot(tab.page, studio.shots, "vite-react")
        edit(tab.page, project, studio)
        changed = tail.wait(lambda seen: seen.name == "file.changed", "the edit")
        assert (changed.data["path"], changed.data["op"], changed.data["by"]) == ("src/App.jsx", "modified", "user")

        project.stop()
        tail.wait_state("dev_server.state", "stopped")
        wake(tab, project, studio)
        assert [seen.seq for seen in tail.seen] == list(range(1, len(tail.seen) + 1))


def stages(seen: list[Seen]) -> None:
    """Each stage in order, each frame whole, no number left out."""
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    for event in seen:
        assert (event.id, event.name) == (str(event.seq), event.body["type"])
        assert event.body["at"].endswith("Z")
    told = [(event.name, event.data.get("state") or event.data["stage"]) for event in seen]
    assert told.count(("project.state", "ready")) == 1
    project = [state for name, state in told if name == "project.state"]
    assert project == sorted(project, key=["provisioning", "ready"].index)
    assert [value for name, value in told if name == "dev_server.stage"] == ["creating", "starting", "probing"]
    states = [value for name, value in told if name == "dev_server.state"]
    assert (states[0], states[-1]) == ("starting", "running")
    assert set(states) == {"starting", "running"}
    assert told.index(("project.state", "ready")) < told.index(("dev_server.stage", "creating"))


def open_preview(tab: Tab, project: Project) -> None:
    """By the link, once: the address is clean then, and the cookie opens it from now on."""
    link = project.preview_link()
    tab.open(link, HEADING)
    assert tab.page.url == f"http://{project.host}/"
    tab.open(tab.page.url, HEADING)
    assert project.knock(link.partition(project.host)[2]).status_code == 401


def edit(page: Page, project: Project, studio: Studio) -> None:
    """The page keeps its state, and with it its life: a load would have ended both."""
    loads = mark(page, EDITED)
    source = project.call("GET", "/files/src/App.jsx")
    asked = time.time()
    answer = project.call(
        "PUT",
        "/files/src/App.jsx",
        content=source.text.replace(HEADING, EDITED).encode(),
        headers={"If-Match": source.headers["etag"]},
    )
    assert answer.status_code == 204, answer.text
    expect(page.get_by_role("heading")).to_have_text(EDITED)
    shown = page.evaluate("window.shownAt") / 1000
    studio.tell("PUT of a source → changed page", shown - asked)
    assert page.evaluate("window.mark") == "alive"
    expect(page.get_by_role("button")).to_have_text("Clicked 2 times")
    assert loads == []
    assert shown - asked < 5


def wake(tab: Tab, project: Project, studio: Studio) -> None:
    """Opening a stopped project's preview starts it; the page that says so turns into the app by itself."""
    page, address = tab.page, f"http://{project.host}/?from=bookmark"
    answers: list[Response] = []
    page.on("response", lambda response: answers.append(response) if response.request.is_navigation_request() else None)
    began = time.monotonic()
    page.goto(address)
    shoot(page, studio.shots, "waking")
    tab.shows(page.get_by_role("heading"), EDITED)
    studio.tell("preview of a stopped project → app", time.monotonic() - began)
    assert [answer.status for answer in answers][:2] == [503, 200]
    assert page.url == address
    assert project.read()["dev_server"]["state"] == "running"
