"""A task at work in a project without a container."""

from pathlib import Path

import pytest

from activities.files.store import DiskFileStore
from tests.tools.world import World, world
from workflows.contracts.names import ProjectRef

REF = ProjectRef(7, 12)


@pytest.fixture
async def task(tmp_path: Path) -> World:
    files = DiskFileStore(tmp_path / "root", None)
    await files.create(REF, None)
    return world(files, REF)
