"""The house of previews, made anew for each test, and one with a Temporal server."""

import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from storage.engine import Database
from tests.preview.world import House, free_port, house
from workflows.contracts.starts import PROJECT_ID, USER_ID


@pytest.fixture
async def previews(database: Database, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with house(database, database_url, tmp_path) as running:
        yield running


@pytest.fixture
async def awake(database: Database, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    """A house with a Temporal server, where a start is accepted and nobody works on it."""
    server = shutil.which("temporal", path=".venv/bin")
    port = free_port()
    async with (
        await WorkflowEnvironment.start_local(
            dev_server_existing_path=server,
            port=port,
            search_attributes=[USER_ID, PROJECT_ID],
            dev_server_startup_timeout=timedelta(seconds=60),
        ),
        house(database, database_url, tmp_path, f"127.0.0.1:{port}") as running,
    ):
        yield running
