"""The service's own way into a preview, by a real browser through the real proxy and gate."""

import pytest

from activities.preview_access import PreviewAccesses
from activities.tools.view_page import ViewPage, ViewPageArguments
from tests.preview.world import DOMAIN, House
from tests.tools.viewing import context


@pytest.mark.browser
async def test_the_service_gets_into_a_preview_as_its_owner_does(previews: House) -> None:
    project = await previews.new_project()
    access = PreviewAccesses(previews.database, scheme="http", domain=DOMAIN, port=previews.port).of(project.ref)
    async with previews.app_of(project):
        previews.seen.clear()
        result = await ViewPage().run(context(access), ViewPageArguments(path="/some/where?a=1#x", wait_s=0))
    assert "Path: /some/where?a=1#x\nHTTP status: 200" in result.text
    assert '{"ok":true}' in result.text
    first = previews.seen[0]
    headers = {name.lower(): value for name, value in first["headers"]}
    assert first["url"].endswith("/some/where?a=1")
    assert headers["x-preview-user"] == str(project.user_id)
    assert "cookie" not in headers
    assert "pvt_" not in str(previews.seen)
    address = await access.open()
    assert address.token not in repr(address)
