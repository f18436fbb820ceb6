"""`ProvisionProject`, `DeleteProject` and `Reconcile`: what is promised whatever fails on the way."""

import asyncio

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.testing import WorkflowEnvironment

from tests.workflows import worlds
from workflows.contracts.names import delete_project_id, provision_project_id
from workflows.contracts.projects import ProjectInput
from workflows.delete_project import DeleteProject
from workflows.provision_project import ProvisionProject

PROJECT = ProjectInput(user_id=1, project_id=2, operation_id="0190a0a0-0000-7000-8000-000000000000")


async def _provision(client: Client, world: worlds.ProjectWorld) -> str:
    async with worlds.worker(client, "projects", world):
        return await client.execute_workflow(
            ProvisionProject.run, PROJECT, id=provision_project_id(2), task_queue="projects"
        )


async def test_a_provision_makes_files_then_says_ready(temporal: WorkflowEnvironment) -> None:
    world = worlds.ProjectWorld()
    assert await _provision(temporal.client, world) == "ready"
    assert world.notes == ["create files", "ready"]


async def test_a_source_that_cannot_be_had_is_told_and_not_tried_again(temporal: WorkflowEnvironment) -> None:
    world = worlds.RefusedSource()
    assert await _provision(temporal.client, world) == "git_failed"
    assert world.notes == ["failed: git_failed: There is no such repository."]


async def test_a_deletion_takes_the_order_that_loses_nothing(temporal: WorkflowEnvironment) -> None:
    world = worlds.StubbornFolder()
    async with worlds.worker(temporal.client, "projects", world):
        await temporal.client.execute_workflow(
            DeleteProject.run, PROJECT, id=delete_project_id(2), task_queue="projects"
        )
    assert world.notes == [
        "others closed",
        "container removed",
        "files in use",
        "files in use",
        "files in use",
        "files removed",
        "rows removed",
    ]


async def test_a_deletion_calls_off_the_provision_before_it_removes_anything(temporal: WorkflowEnvironment) -> None:
    world = worlds.SlowSource()
    client = temporal.client
    async with worlds.worker(client, "projects", world), asyncio.timeout(30):
        provision = await client.start_workflow(
            ProvisionProject.run, PROJECT, id=provision_project_id(2), task_queue="projects"
        )
        while "create files" not in world.notes:  # noqa: ASYNC110 -- the world is a plain list
            await asyncio.sleep(0.01)
        await client.execute_workflow(DeleteProject.run, PROJECT, id=delete_project_id(2), task_queue="projects")
        with pytest.raises(WorkflowFailureError):
            await provision.result()
    assert "called off" in world.notes
    assert "rows removed" in world.notes
    assert not any(note.startswith("failed") for note in world.notes)
