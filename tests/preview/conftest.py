"""The house of previews, made anew for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.engine import Database
from tests.preview.world import House, house


@pytest.fixture
async def previews(database: Database, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with house(database, database_url, tmp_path) as running:
        yield running
