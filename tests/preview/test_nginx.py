"""Who gets in where nginx asks: what the gate answers to ingress-nginx's `auth-url`.

It asks by GET with all of the visitor's own headers, and sets `X-Original-URL` (`$scheme://$http_host$request_uri`) and
`X-Original-Method`. It lets in with 2xx, refuses with 401 and 403, and takes all else for a fault. What it is told to
take from the answer (`auth-response-headers`) replaces the request's own, a missing one included.
"""

import httpx

from activities.runtimes.kubernetes_gateway import ingress_annotations
from api.preview.gate_key import gate_key
from storage import dev_servers
from storage.dev_servers import DevServerRecord
from storage.projects import ProjectRecord
from tests.preview.world import DOMAIN, House
from workflows.contracts.names import preview_host

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


async def ask(
    previews: House,
    project: ProjectRecord,
    uri: str = "/",
    *,
    named: str | None = None,
    method: str = "GET",
    key: str | None = None,
    **headers: str,
) -> httpx.Response:
    """The question about a visit to the project's preview; `named`: the `Host` that the visitor sent with it."""
    key = gate_key(previews.services.secrets) if key is None else key
    auth_url = f"http://127.0.0.1:{previews.api_port}/internal/preview/nginx?key={key}"
    told = ingress_annotations("nginx", preview_host(project.ref, DOMAIN), (), auth_url, encrypted=False)
    sent = {
        **{name.replace("_", "-"): value for name, value in headers.items()},
        "X-Original-URL": f"http://{named or previews.host(project)}{uri}",
        "X-Original-Method": method,
    }
    async with httpx.AsyncClient() as client:
        return await client.get(told["nginx.ingress.kubernetes.io/auth-url"], headers=sent)


async def server_of(previews: House, project: ProjectRecord) -> DevServerRecord:
    async with previews.database.reading() as session:
        found = await dev_servers.get(session, project.id)
    assert found is not None
    return found


async def test_a_link_opens_the_preview_and_sets_the_cookie(previews: House) -> None:
    project = await previews.new_project()
    uri = f"/a%2Fb?x=1&token={await previews.token(project)}"
    opened = await ask(previews, project, uri)
    assert (opened.status_code, opened.headers["x-preview-user"]) == (200, str(project.user_id))
    (cookie,) = opened.headers.get_list("set-cookie")
    assert cookie.startswith("studio_preview=")
    value = cookie.partition(";")[0]
    assert (await ask(previews, project, uri)).status_code == 401
    again = await ask(previews, project, uri, Cookie=value)
    assert (again.status_code, "set-cookie" in again.headers, "cookie" in again.headers) == (200, False, False)


async def test_only_the_foreign_part_of_a_request_goes_on(previews: House) -> None:
    project = await previews.new_project()
    ours = await previews.cookies(project)
    token = await previews.token(project)
    bearer = await previews.bearer(project.user_id)
    answer = await ask(
        previews,
        project,
        Cookie=f"a=b; {ours}",
        X_Preview_Token=token,
        X_Preview_User="1000",
        Authorization="Basic abc",
    )
    assert (answer.headers["cookie"], answer.headers["authorization"]) == ("a=b", "Basic abc")
    assert answer.headers["x-preview-user"] == str(project.user_id)
    assert "x-preview-token" not in answer.headers
    assert "authorization" not in (await ask(previews, project, Cookie=ours, Authorization=f"Bearer {bearer}")).headers


async def test_nobody_else_gets_in(previews: House) -> None:
    project, other = await previews.new_project(), await previews.new_project("bob@example.com")
    cookie, theirs = await previews.cookies(project), await previews.cookies(other)
    assert (await ask(previews, project)).status_code == 401
    assert (await ask(previews, project, Cookie=theirs)).status_code == 401
    assert (await ask(previews, project, f"/?token={await previews.token(other)}")).status_code == 401
    assert (await ask(previews, project, Cookie=cookie, key="0" * 64)).status_code == 404
    assert (await ask(previews, project, Cookie=cookie)).status_code == 200


async def test_another_project_cannot_be_had_by_naming_ones_own(previews: House) -> None:
    """The visitor has a cookie for his own project, and says so in every header that there is."""
    project, own = await previews.new_project(), await previews.new_project("bob@example.com")
    cookie = await previews.cookies(own)
    forged = await ask(
        previews, project, Cookie=cookie, X_Forwarded_Host=previews.host(own), X_Forwarded_Uri="/", X_Real_Host="x"
    )
    assert forged.status_code == 401
    # `GET http://theirs/ HTTP/1.1` with `Host: own`: nginx routes by the first and tells of the second.
    assert (await ask(previews, project, named=previews.host(own), Cookie=cookie)).status_code == 403
    assert (await ask(previews, project, named="elsewhere", Cookie=cookie)).status_code == 403


async def test_a_socket_is_opened_by_the_previews_own_pages(previews: House) -> None:
    project = await previews.new_project()
    cookie = await previews.cookies(project)
    asked = {"Cookie": cookie, "Sec_WebSocket_Key": "x"}
    assert (await ask(previews, project, **asked)).status_code == 403
    assert (await ask(previews, project, Origin="http://evil.example.com", **asked)).status_code == 403
    assert (await ask(previews, project, Origin=f"http://{previews.host(project)}", **asked)).status_code == 200


async def test_a_page_wakes_the_server_and_nothing_else_does(awake: House) -> None:
    project = await awake.new_project()
    cookie = await awake.cookies(project)
    for asked in ({}, {"Accept": "*/*"}, {"Accept": HTML, "method": "POST"}):
        assert (await ask(awake, project, Cookie=cookie, **asked)).status_code == 200
    assert (await ask(awake, project, Accept=HTML)).status_code == 401
    assert (await server_of(awake, project)).generation == 0
    for _ in range(2):
        assert (await ask(awake, project, Cookie=cookie, Accept=HTML)).status_code == 200
    server = await server_of(awake, project)
    assert (server.state, server.generation) == ("starting", 1)
