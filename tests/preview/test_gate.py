"""Who gets into a preview, and what reaches the server behind it: on a real Traefik and real servers."""

import asyncio
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from storage import leases
from tests.preview.world import House, access_token

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


async def test_without_a_credential_nobody_gets_in_and_html_is_answered_with_a_page(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        plain = await previews.get(project)
        page = await previews.get(project, Accept=HTML)
    assert plain.status_code == page.status_code == 401
    assert plain.headers["content-type"] == "application/problem+json"
    assert plain.json()["code"] == "unauthenticated"
    assert "http://localhost:8000" in page.text
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert previews.seen == []


async def test_a_link_works_once_and_leads_to_the_clean_address(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        token = await previews.token(project)
        path = f"/a%2Fb?x=1&token={token}&y=%20"
        first, second = await asyncio.gather(
            previews.get(project, path, Accept=HTML), previews.get(project, path, Accept=HTML)
        )
    won, lost = sorted((first, second), key=lambda answer: answer.status_code)
    assert (won.status_code, lost.status_code) == (302, 401)
    assert won.headers["location"] == f"http://{previews.host(project)}/a%2Fb?x=1&y=%20"
    session, frame = won.headers.get_list("set-cookie")
    assert session.startswith("studio_preview=")
    assert frame.startswith("studio_preview_frame=")
    assert {part.strip() for part in session.split(";")[1:]} == {"Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Lax"}
    assert {part.strip() for part in frame.split(";")[1:]} == {
        "Path=/", "Max-Age=43200", "HttpOnly", "SameSite=None", "Secure", "Partitioned",
    }  # fmt: skip
    assert previews.seen == []


async def test_only_the_foreign_part_of_a_request_reaches_the_app(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        ours = await previews.cookies(project)
        session, frame = ours.split("; ")
        theirs = 'a="b c"; d=1=2;e=ü'
        mixed = f'a="b c"; {session}; d=1=2;{frame};e=ü'
        token = await previews.token(project)
        answer = await previews.get(
            project,
            "/path?token=own",
            Cookie=mixed,
            X_Preview_Token=token,
            X_Preview_User="1000",
            Authorization="Basic abc",
        )
        only_ours = await previews.get(project, Cookie=ours)
    assert (answer.status_code, only_ours.status_code) == (200, 200)
    seen, bare = ({name.lower(): value for name, value in request["headers"]} for request in previews.seen)
    assert seen["cookie"] == theirs
    assert seen["authorization"] == "Basic abc"
    assert seen["x-preview-user"] == bare["x-preview-user"] == str(project.user_id)
    assert "x-preview-token" not in seen
    assert "x-studio-gate" not in seen
    assert "cookie" not in bare
    assert previews.seen[0]["url"].endswith("/path?token=own")
    assert token not in str(previews.seen)


async def test_the_platforms_own_bearer_credentials_never_reach_the_app(previews: House) -> None:
    project = await previews.new_project()
    jwt = access_token(previews.services, project.user_id, uuid4())
    async with previews.app_of(project):
        cookie = await previews.cookies(project)
        for own in (f"Bearer {jwt}", f"bearer  {await previews.bearer(project.user_id)}"):
            assert (await previews.get(project, Cookie=cookie, Authorization=own)).status_code == 200
        await previews.get(project, Cookie=cookie, Authorization="Bearer the.apps.own")
    assert [dict(request["headers"]).get("authorization") for request in previews.seen] == [
        None, None, "Bearer the.apps.own",
    ]  # fmt: skip


async def test_no_credential_opens_another_project(previews: House) -> None:
    project, other = await previews.new_project(), await previews.new_project("ben@example.com")
    async with previews.app_of(project, other):
        token, cookie = await previews.token(other), await previews.cookies(other)
        refused = [
            await previews.get(project, f"/?token={token}"),
            await previews.get(project, X_Preview_Token=token),
            await previews.get(project, Cookie=cookie),
            await previews.get(project, X_Preview_User=str(project.user_id)),
            await previews.get(project, X_Forwarded_Host=previews.host(other), Cookie=cookie),
            await previews.get(project, Authorization=f"Bearer {await previews.bearer(project.user_id)}"),
        ]
        assert [answer.status_code for answer in refused] == [401] * 6
        assert (await previews.get(other, f"/?token={token}")).status_code == 302  # wasn't spent by the attempt
    assert previews.seen == []


async def test_an_expired_token_opens_nothing(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        token = await previews.token(project)
        async with previews.database.transaction() as session:
            await session.execute(text("UPDATE preview_tokens SET expires_at = now() - interval '1 s'"))
        answers = [await previews.get(project, f"/?token={token}"), await previews.get(project, X_Preview_Token=token)]
    assert [answer.status_code for answer in answers] == [401, 401]


async def test_a_spent_token_still_works_as_a_header(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        token = await previews.token(project)
        assert (await previews.get(project, f"/?token={token}")).status_code == 302
        assert (await previews.get(project, X_Preview_Token=token, method="POST")).status_code == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("UPDATE users SET is_active = false", 404),
        ("UPDATE projects SET state = 'deleting'", 404),
        ("DELETE FROM projects", 404),
    ],
)
async def test_a_cookie_ends_with_its_project_and_its_owner(previews: House, change: str, status: int) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        cookie = await previews.cookies(project)
        async with previews.database.transaction() as session:
            await session.execute(text(change))
        assert (await previews.get(project, Cookie=cookie)).status_code == status
    assert previews.seen == []


async def test_a_forged_or_foreign_cookie_is_worth_nothing(previews: House) -> None:
    project = await previews.new_project()
    cookie = await previews.cookies(project)
    name, _, value = cookie.partition("; ")[0].partition("=")
    head, claims, signature = value.split(".")
    platform = access_token(previews.services, project.user_id, uuid4())
    for forged in (f"{head}.{claims}.{signature[::-1]}", f"{head}.{claims}.", "x", platform):
        assert (await previews.get(project, Cookie=f"{name}={forged}")).status_code == 401


async def test_websockets_pass_from_the_previews_own_pages_only(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        cookie, token = await previews.cookies(project), await previews.token(project)
        url = f"ws://{previews.host(project)}/socket"

        async def speak(*headers: tuple[str, str]) -> str:
            there = connect(url, host="127.0.0.1", additional_headers=headers, proxy=None, open_timeout=5)
            async with there as socket:
                await socket.send("hi")
                return str(await socket.recv())

        own, evil = ("Origin", f"http://{previews.host(project)}"), ("Origin", "http://evil.example")
        assert await speak(own, ("Cookie", f"{cookie}; k=v")) == "echo hi"
        assert await speak(("X-Preview-Token", token)) == "echo hi"
        for headers, status in (
            ([evil, ("Cookie", cookie)], 403),
            ([("Cookie", cookie)], 403),
            ([evil, ("X-Preview-Token", token)], 403),
            ([own], 401),
        ):
            with pytest.raises(InvalidStatus) as refused:
                await speak(*headers)
            assert refused.value.response.status_code == status
    assert dict(previews.seen[0]["headers"])["cookie"] == "k=v"
    assert len(previews.seen) == 2


async def test_a_silent_stream_isnt_cut_nor_held_back(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project), httpx.AsyncClient() as client:
        headers = {"Host": previews.host(project), "X-Preview-Token": await previews.token(project)}
        url = f"http://127.0.0.1:{previews.port}/quiet?seconds=3"
        loop = asyncio.get_running_loop()
        async with client.stream("GET", url, headers=headers, timeout=10) as answer:
            pieces = answer.aiter_bytes()
            began = loop.time()
            assert await anext(pieces) == b"data: first\n\n"
            assert loop.time() - began < 1
            assert b"".join([piece async for piece in pieces]) == b"data: last\n\n"


@pytest.mark.slow
async def test_a_stream_outlives_a_minute_of_silence(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project), httpx.AsyncClient(timeout=90) as client:
        headers = {"Host": previews.host(project), "X-Preview-Token": await previews.token(project)}
        answer = await client.get(f"http://127.0.0.1:{previews.port}/quiet?seconds=65", headers=headers)
    assert answer.text.endswith("data: last\n\n")


async def test_a_large_upload_passes_whole(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project), httpx.AsyncClient() as client:
        headers = {"Host": previews.host(project), "X-Preview-Token": await previews.token(project)}
        body = b"x" * (12 * 1024 * 1024)
        answer = await client.put(f"http://127.0.0.1:{previews.port}/upload", headers=headers, content=body)
    assert answer.status_code == 200
    assert previews.seen[0]["size"] == len(body)


async def test_traffic_keeps_the_server_awake_with_one_write(previews: House) -> None:
    project = await previews.new_project()
    async with previews.app_of(project):
        cookie = await previews.cookies(project)
        for _ in range(5):
            await previews.get(project, Cookie=cookie)
        await asyncio.sleep(0.3)  # it is written beside the requests
        held = await _leases(previews, project.id)
        assert [lease.kind for lease in held] == ["preview"]
        await previews.get(project, Cookie=cookie)
        await asyncio.sleep(0.3)
        assert await _leases(previews, project.id) == held


async def test_the_internal_routes_are_there_for_traefik_alone(previews: House) -> None:
    project = await previews.new_project()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{previews.api_port}") as client:
        for path in ("/internal/preview/auth", "/internal/preview/fallback", "/internal/traefik/config"):
            headers = {"Host": previews.host(project), "X-Preview-User": str(project.user_id), "Accept": HTML}
            assert (await client.get(path, headers=headers)).status_code == 404
            assert (await client.get(path, headers=headers, params={"key": "0" * 64})).status_code == 404
        assert "/internal" not in (await client.get("/openapi.json")).text


async def _leases(previews: House, project_id: int) -> list[leases.LeaseRecord]:
    async with previews.database.transaction() as session:
        return await leases.held(session, project_id)
