"""`GET /api/templates`, over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from storage.engine import Database
from tests.preview.world import House, house


@pytest.fixture
async def running(database: Database, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with house(database, database_url, tmp_path) as found:
        yield found


async def test_templates_are_listed_for_who_is_signed_in(running: House) -> None:
    project = await running.new_project()
    bearer = {"Authorization": f"Bearer {await running.bearer(project.user_id)}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.api_port}") as client:
        listed = await client.get("/api/templates", headers=bearer)
        stranger = await client.get("/api/templates")
    assert listed.json() == [{"name": "static", "title": "Static", "description": "Plain"}]
    assert stranger.status_code == 401
