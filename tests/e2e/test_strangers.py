"""Somebody else's project isn't there: on no route, and in no preview."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from storage.secret_box import SecretBox
from tests.e2e.studio import Person, Project
from workflows.contracts.names import PREVIEW_COOKIE, PREVIEW_FRAME_COOKIE

MISSING = 2**40
BODIES: dict[str, dict[str, Any]] = {
    "PUT /env": {"json": {"NAME": "value"}},
    "PUT /files/{path}": {"content": b"theirs"},
    "POST /files:move": {"json": {"from": "index.html", "to": "moved.html"}},
    "POST /files:batch": {"json": {"operations": [{"op": "delete", "path": "index.html"}]}},
    "PUT /archive": {"content": b"PK\x05\x06" + 18 * b"\0"},
    "PATCH ": {"json": {"name": "theirs"}},
    "POST /fork": {"json": {"name": "theirs"}},
    "POST /exec": {"json": {"command": "touch theirs"}},
}
"""What a route with a body is sent, by method and path below the project. A new route belongs in here, too."""


def routes(person: Person) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path below a project, and what to send, of every route of the OpenAPI document."""
    prefix = "/api/projects/{project_id}"
    document = person.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        assert path.startswith(prefix) == ("{project_id}" in path), path
        if not path.startswith(prefix):
            continue
        below = path.removeprefix(prefix)
        for method, route in methods.items():
            name = f"{method.upper()} {below}"
            assert ("requestBody" in route) == (name in BODIES), f"{name} isn't as BODIES says"
            yield method.upper(), below.replace("{path}", "index.html"), BODIES.get(name, {})


def test_every_route_of_a_project_is_404_for_others_and_401_for_nobody(site: Project, ben: Person) -> None:
    before, log = site.read(), site.call("GET", "/logs").text
    known = list(routes(ben))
    assert len(known) >= 20
    with httpx.Client(base_url=ben.studio.stack.api, timeout=10) as nobody:
        for method, below, body in known:
            foreign = ben.http.request(method, f"/api/projects/{site.id}{below}", **body, timeout=10)
            missing = ben.http.request(method, f"/api/projects/{MISSING}{below}", **body, timeout=10)
            closed = nobody.request(method, f"/api/projects/{site.id}{below}", **body)
            assert [foreign.status_code, missing.status_code, closed.status_code] == [404, 404, 401], (method, below)
            if method != "HEAD":
                assert foreign.json() == missing.json()
                assert foreign.json()["code"] == "not_found"
                assert foreign.headers["content-type"] == "application/problem+json"
    after = site.read()
    assert [after[key] for key in ("name", "state", "updated_at")] == [
        before[key] for key in ("name", "state", "updated_at")
    ]
    assert after["dev_server"]["state"] == "running"
    assert site.call("GET", "/logs").text == log
    assert "theirs" not in site.run("ls -A")["stdout"]
    assert site.call("GET", "/files/index.html").status_code == 200
    assert site.call("GET", "/env").json() != {"NAME": "value"}
    assert [
        project["name"] for project in ben.http.get("/api/projects").json()["items"] if project["id"] == site.id
    ] == []


def test_streams_and_terminals_take_nobody_elses_ticket(site: Project, ben: Person) -> None:
    for project_id in (site.id, MISSING):
        events = httpx.get(
            f"{ben.studio.stack.api}/api/projects/{project_id}/events", params={"ticket": ticket(ben)}, timeout=10
        )
        assert (events.status_code, events.json()["code"]) == (404, "not_found")
        with pytest.raises(InvalidStatus) as refused, terminal(ben, project_id, ticket(ben)):
            pass
        assert refused.value.response.status_code == 404
    with pytest.raises(InvalidStatus) as refused, terminal(ben, site.id, "no-ticket"):
        pass
    assert refused.value.response.status_code == 401
    spent = ticket(site.owner)
    with terminal(site.owner, site.id, spent):
        pass
    with pytest.raises(InvalidStatus) as refused, terminal(site.owner, site.id, spent):
        pass
    assert refused.value.response.status_code == 401


def ticket(person: Person) -> str:
    return str(person.http.post("/api/auth/ticket", json={}).json()["ticket"])


def terminal(person: Person, project_id: int, of: str) -> Any:
    address = f"{person.studio.stack.api.replace('http', 'ws', 1)}/api/projects/{project_id}/terminal?ticket={of}"
    return connect(address, open_timeout=10, proxy=None)


def test_operations_are_their_owners(site: Project, ben: Person) -> None:
    location = site.call("POST", "/start").headers["location"]
    assert site.owner.http.get(location).status_code == 200
    foreign, missing = ben.http.get(location), ben.http.get(f"/api/operations/{uuid4()}")
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json() == missing.json()
    assert ben.http.get(f"{location}/events", timeout=10).status_code == 404


# --- previews ---------------------------------------------------------------------------------------------------


def cookies(project: Project) -> str:
    """The cookie header of a browser that has opened the preview's link."""
    link = project.preview_link()
    answer = project.knock(link.partition(project.host)[2])
    assert answer.status_code == 302, answer.text
    return "; ".join(value.partition(";")[0] for value in answer.headers.get_list("set-cookie"))


def forged(project: Project, *, expires_in: float, key: bytes | None = None, **claims: object) -> str:
    """A cookie as the studio signs it (or another `key`)."""
    secret = SecretBox((project.owner.studio.stack.data / "secret-key").read_text().strip())
    now = int(time.time())
    payload = {"sub": str(project.owner.id), "project": project.id, "iat": now, "typ": "preview"}
    payload |= {"exp": now + int(expires_in), **claims}
    return f"{PREVIEW_COOKIE}={jwt.encode(payload, key or secret.derive('preview-cookie'), 'HS256')}"


def test_a_preview_opens_for_its_owner_alone(site: Project, ann: Person, ben: Person) -> None:
    other, foreign = ann.make("static"), ben.make("static")
    used = site.preview_link().partition(site.host)[2]
    assert site.knock(used).status_code == 302
    key = ben.http.post("/api/users/me/api-keys", json={"name": "k"}).json()["key"]
    attempts: dict[str, httpx.Response] = {
        "nothing": site.knock(),
        "a session": site.knock(Authorization=f"Bearer {ben.token}"),
        "the owner's session": site.knock(Authorization=f"Bearer {ann.token}"),
        "an API key": site.knock(Authorization=f"Bearer {key}"),
        "a token of one's own": site.knock(X_Preview_Token=foreign.preview_token()),
        "a token of the owner's other project": site.knock(X_Preview_Token=other.preview_token()),
        "a link of one's own": site.knock(f"/?token={foreign.preview_token()}"),
        "a link of the owner's other project": site.knock(f"/?token={other.preview_token()}"),
        "a used link": site.knock(used),
        "a cookie of one's own": site.knock(Cookie=cookies(foreign)),
        "a cookie of the owner's other project": site.knock(Cookie=cookies(other)),
        "an expired cookie": site.knock(Cookie=forged(site, expires_in=-1)),
        "a cookie of another kind": site.knock(Cookie=forged(site, expires_in=60, typ="access")),
        "a cookie signed by somebody": site.knock(Cookie=forged(site, expires_in=60, key=32 * b"x")),
        "no cookie at all": site.knock(Cookie=f"{PREVIEW_COOKIE}=; {PREVIEW_FRAME_COOKIE}=x"),
        "a header that only the proxy may set": site.knock(X_Preview_User=str(ann.id)),
    }
    assert {name: answer.status_code for name, answer in attempts.items()} == dict.fromkeys(attempts, 401)
    for name, answer in attempts.items():
        assert answer.json()["code"] == "unauthenticated", name
        assert "Your site is live" not in answer.text
    # The forgery itself is right: it opens once only its time differs.
    assert site.knock(Cookie=forged(site, expires_in=60)).status_code == 200
    assert "Your site is live" in site.knock(Cookie=cookies(site)).text


def test_a_websocket_of_a_preview_comes_from_its_own_pages(site: Project) -> None:
    own = cookies(site)
    for headers, status in (
        ({}, 401),
        ({"Cookie": own}, 403),
        ({"Cookie": own, "Origin": "http://evil.example"}, 403),
        ({"Cookie": own, "Origin": f"http://localhost:{site.owner.studio.preview_port}"}, 403),
    ):
        with pytest.raises(InvalidStatus) as refused, hmr(site, headers):
            pass
        assert refused.value.response.status_code == status, headers
    with hmr(site, {"Cookie": own, "Origin": f"http://{site.host}"}) as socket:
        assert "connected" in str(socket.recv(timeout=10))


def hmr(project: Project, headers: dict[str, str]) -> Any:
    """Vite's own WebSocket, by the preview's address."""
    return connect(
        f"ws://{project.host}/?token={vite_token(project)}",
        additional_headers=headers,
        subprotocols=["vite-hmr"],  # type: ignore[list-item]  # a NewType of str
        address=("127.0.0.1", project.owner.studio.preview_port),
        open_timeout=10,
        proxy=None,
    )


def vite_token(project: Project) -> str:
    """Vite lets in who has read its client script."""
    script = project.visit("/@vite/client").text
    return script.partition('const wsToken = "')[2].partition('"')[0]
