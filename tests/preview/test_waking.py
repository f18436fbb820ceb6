"""What stands in place of a server that doesn't run, on a real Traefik, a real API and a real Temporal server."""

import pytest
from sqlalchemy import text
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.preview.waking import RETRY_TYPE, STATE_TYPE
from storage import dev_servers
from storage.dev_servers import DevServerRecord
from storage.projects import ProjectRecord
from tests.preview.world import House
from workflows.contracts.dev_servers import DevServerState
from workflows.contracts.names import dev_server_id

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


async def test_a_navigation_wakes_the_project_once_and_shows_how_it_goes(awake: House) -> None:
    project = await awake.new_project()
    cookie = await awake.cookies(project)
    state = await awake.get(project, Cookie=cookie, Accept=STATE_TYPE)
    assert (state.status_code, state.json()["title"]) == (503, "Not running")
    assert (await _server(awake, project)).generation == 0  # asking isn't waking

    page = await awake.get(project, "/deep/link?x=1", Cookie=cookie, Accept=HTML)
    assert (page.status_code, page.headers["retry-after"]) == (503, "2")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-store"
    assert "Waking up" in page.text
    server = await _server(awake, project)
    assert (server.state, server.generation) == ("starting", 1)
    client = await awake.services.temporal.client()
    assert (await client.get_workflow_handle(dev_server_id(project.id)).describe()).workflow_type == "DevServer"

    await _write(awake, "UPDATE dev_servers SET stage = 'probing'")
    await awake.get(project, Cookie=cookie, Accept=HTML)
    state = await awake.get(project, Cookie=cookie, Accept=STATE_TYPE)
    assert state.headers["content-type"] == STATE_TYPE
    assert (state.json()["tone"], state.json()["stage"]) == ("busy", "probing")
    assert (await _server(awake, project)).generation == 1


async def test_a_fresh_failure_is_shown_and_started_again_when_its_owner_says_so(awake: House) -> None:
    project = await awake.new_project()
    cookie = await awake.cookies(project)
    await _write(
        awake,
        "UPDATE dev_servers SET state = 'failed', since = now(), reason = 'It crashed.', exit_code = 7, "
        "log_tail = 'boom </script><b>'",
    )
    page = await awake.get(project, Cookie=cookie, Accept=HTML)
    assert "It crashed. (exit code 7)" in page.text
    assert "boom \\u003c/script>" in page.text
    for _ in range(3):
        assert (await awake.get(project, Cookie=cookie, Accept=STATE_TYPE)).json()["can_retry"] is True
    assert (await _server(awake, project)).generation == 0

    retried = await awake.get(project, Cookie=cookie, Accept=RETRY_TYPE)
    assert retried.json()["tone"] == "busy"
    assert (await _server(awake, project)).generation == 1

    await _write(awake, "UPDATE dev_servers SET state = 'failed', since = now() - interval '1 min'")
    await awake.get(project, Cookie=cookie, Accept=HTML)
    assert (await _server(awake, project)).generation == 2


async def test_other_requests_are_told_to_come_back_and_start_nothing(previews: House) -> None:
    project = await previews.new_project()
    token = await previews.token(project)
    plain = await previews.get(project, "/api", X_Preview_Token=token)
    assert (plain.status_code, plain.headers["content-type"]) == (503, "application/problem+json")
    assert plain.json()["retryable"] is True
    form = await previews.get(project, X_Preview_Token=token, Accept=HTML, method="POST")
    assert form.status_code == 503
    assert plain.headers["retry-after"] == form.headers["retry-after"] == "2"
    with pytest.raises(InvalidStatus) as refused:
        async with connect(
            f"ws://{previews.host(project)}/",
            host="127.0.0.1",
            proxy=None,
            additional_headers={"X-Preview-Token": token},
        ):
            pass
    assert refused.value.response.status_code == 503
    assert (await _server(previews, project)).generation == 0


async def test_who_isnt_the_owner_sees_and_starts_nothing(previews: House) -> None:
    project, other = await previews.new_project(), await previews.new_project("ben@example.com")
    cookie = await previews.cookies(other)
    answers = [
        await previews.get(project, Accept=HTML),
        await previews.get(project, Accept=HTML, Cookie=cookie),
        await previews.get(project, Accept=RETRY_TYPE, Cookie=cookie, X_Preview_User=str(project.user_id)),
        await previews.get(project, Accept=HTML, X_Studio_Gate="x", X_Preview_User=str(project.user_id)),
    ]
    assert [answer.status_code for answer in answers] == [401] * 4
    assert (await _server(previews, project)).generation == 0


async def test_a_start_that_cant_be_accepted_says_so(previews: House) -> None:
    project = await previews.new_project()  # and there is no Temporal server
    cookie = await previews.cookies(project)
    page = await previews.get(project, Cookie=cookie, Accept=HTML)
    assert page.status_code == 503
    assert "started now" in page.text
    assert (await _server(previews, project)).state == "stopped"


async def test_a_server_that_has_just_died_is_answered_for(previews: House) -> None:
    project = await previews.new_project()
    cookie = await previews.cookies(project)
    async with previews.app_of(project):
        pass
    # The app is gone, its route is still there: Traefik's own 502 is replaced.
    page = await previews.get(project, Cookie=cookie, Accept=HTML)
    assert (page.status_code, page.headers["retry-after"]) == (503, "2")
    assert "Almost there" in page.text
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    plain = await previews.get(project, Cookie=cookie)
    assert (plain.status_code, plain.headers["content-type"]) == (503, "application/problem+json")
    assert (await previews.get(project, Cookie=cookie, Accept=STATE_TYPE)).json()["tone"] == "busy"
    assert (await previews.get(project, Accept=HTML)).status_code == 401


@pytest.mark.parametrize("state", [DevServerState.STOPPED, DevServerState.STOPPING, DevServerState.FAILED])
async def test_nobody_gets_through_a_route_that_is_older_than_the_servers_end(
    previews: House, state: DevServerState
) -> None:
    """The proxy learns late that a server has gone; what has its address by then may be another's."""
    project = await previews.new_project()
    async with previews.app_of(project):
        cookie = await previews.cookies(project)
        await previews.set_server_state(project, state)
        kinds = {HTML: "text/html", STATE_TYPE: STATE_TYPE, RETRY_TYPE: STATE_TYPE, "*/*": "application/problem+json"}
        for accept, kind in kinds.items():
            answer = await previews.get(project, Cookie=cookie, Accept=accept)
            assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (503, kind)
        with pytest.raises(InvalidStatus) as refused:
            async with connect(
                f"ws://{previews.host(project)}/socket",
                host="127.0.0.1",
                proxy=None,
                additional_headers={"Cookie": cookie, "Origin": f"http://{previews.host(project)}"},
            ):
                pass
        assert refused.value.response.status_code == 503
        assert previews.seen == []
        for up in (DevServerState.STARTING, DevServerState.RUNNING):
            await previews.set_server_state(project, up)
            assert (await previews.get(project, Cookie=cookie, Accept=HTML)).status_code == 200


async def test_a_route_goes_with_its_server(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        await previews.drop_routes(project)
        token = await previews.token(project)
        assert (await previews.get(project, X_Preview_Token=token)).status_code == 503


async def test_hosts_that_are_no_previews_lead_nowhere(previews: House) -> None:
    project = await previews.new_project()
    for host in ("localhost", "user1-project1.localhost.evil.example", "user0-project1.localhost", "evil.example"):
        assert (await previews.get(project, Host=host)).status_code == 404


async def _server(running: House, project: ProjectRecord) -> DevServerRecord:
    async with running.database.transaction() as session:
        found = await dev_servers.get(session, project.id)
    assert found is not None
    return found


async def _write(running: House, statement: str) -> None:
    async with running.database.transaction() as session:
        await session.execute(text(statement))
