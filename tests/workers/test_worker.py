import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from activities.dev_servers import DevServers
from activities.projects import Projects
from activities.reconcile import Reconciliation
from storage.engine import Database
from tests.workers.stacks import ROOT
from workers.numbering import begin_user_ids
from workers.templates import load_templates, template_folders
from workers.worker import activities_of, schedule_reconcile
from workflows.contracts.dev_servers import DevServerActivities
from workflows.contracts.names import RECONCILE_ID
from workflows.contracts.projects import ProjectActivities
from workflows.contracts.reconcile import ReconcileActivities


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    program = ROOT / ".venv" / "bin" / "temporal"
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(program), data_converter=pydantic_data_converter, dev_server_log_level="error"
    ) as environment:
        yield environment.client


@pytest.mark.parametrize(
    ("implementation", "contract"),
    [
        (DevServers, DevServerActivities),
        (Projects, ProjectActivities),
        (Reconciliation, ReconcileActivities),
    ],
)
def test_every_activity_of_a_contract_is_registered(implementation: type[Any], contract: type[Any]) -> None:
    made = object.__new__(implementation)
    promised = {name for name, member in vars(contract).items() if hasattr(member, "__temporal_activity_definition")}
    assert promised
    assert {activity.__name__ for activity in activities_of(made)} == promised


async def test_reconcile_is_scheduled_once_and_as_this_release_says(client: Client) -> None:
    await schedule_reconcile(client, every_s=60, grace_s=60)
    await schedule_reconcile(client, every_s=20, grace_s=5)
    async with asyncio.timeout(20):
        listed: list[str] = []
        while not listed:  # the list is eventually consistent
            await asyncio.sleep(0.1)
            listed = [entry.id async for entry in await client.list_schedules()]
    description = await client.get_schedule_handle(RECONCILE_ID).describe()
    assert listed == [RECONCILE_ID]
    assert [interval.every for interval in description.schedule.spec.intervals] == [timedelta(seconds=20)]


async def test_first_user_id_is_set_once_and_never_lowers(database: Database) -> None:
    async def next_id() -> int:
        async with database.transaction() as session:
            return int(await session.scalar(text("SELECT nextval(pg_get_serial_sequence('users', 'id'))")) or 0)

    await begin_user_ids(database, 500_000)
    await begin_user_ids(database, 500_000)
    assert await next_id() == 500_000
    await begin_user_ids(database, 500_000)
    await begin_user_ids(database, 7)
    assert await next_id() == 500_001


def test_templates_of_this_release_are_complete() -> None:
    assert {"vite-react", "static", "fastapi"} <= set(load_templates())
    folders = template_folders()
    assert set(folders) == set(load_templates())
    assert all((folder / "studio.toml").is_file() for folder in folders.values())
