"""A store over a temporary root, with each way of resolving paths."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.files.store import DiskFileStore
from workflows.contracts.names import ProjectRef

REF = ProjectRef(7, 12)


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture(params=[True, False], ids=["openat2", "walk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> DiskFileStore:
    return DiskFileStore(tmp_path / "root", None, use_openat2=request.param)


@pytest.fixture
async def project(store: DiskFileStore) -> Path:
    await store.create(REF, None)
    return store.root(REF)
