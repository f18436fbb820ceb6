"""What chaos tests do to projects, and how they see that all is as it must be."""

import asyncio
import random
from collections.abc import Sequence

import asyncpg
import httpx

from tests.chaos.world import Person, Project, many_files, states, until

MANY = 3000
TABLES = ("projects", "dev_servers", "events", "leases", "environment_variables", "preview_tokens")
RUNS = {"start_dev_server": True, "restart_dev_server": True, "stop_dev_server": False}


async def big(ann: Person) -> Project:
    """A project whose copy takes long enough to be interrupted."""
    project = await ann.make()
    packed, kind = await asyncio.to_thread(many_files, MANY), {"Content-Type": "application/gzip"}
    answer = await project.call("PUT", "/archive", content=packed, headers=kind)
    assert answer.is_success, answer.text
    return project


async def fork(source: Project) -> Project:
    answer = await source.call("POST", "/fork", json={})
    assert answer.status_code == 202, answer.text
    return Project(source.owner, answer.json()["id"])


async def half_copied(project: Project) -> bool:
    """Whether files are there, and not all of them."""
    return any((path / "many" / "3").is_dir() for path in project.unfinished)


async def check_started_once(project: Project) -> None:
    log = await project.check_sound()
    assert states(log) == ["starting", "running"]
    assert project.starts() == 1
    [server] = project.world.observer.servers(project.owner.id, project.id)
    assert server.runs


async def until_gone(project: Project) -> None:
    async def gone() -> bool:
        return (await project.call("GET")).status_code == 404

    # A cluster may take 40 s for a pod alone (k8s/README.md): it is struck off by force when its node has lost its end.
    await until(gone, f"the end of project {project.id}", 90)


async def check_nothing_left(project: Project) -> None:
    """Of this project: neither container, folder, half-made folder nor row; and its operations have ended."""
    world, owner = project.world, project.owner
    assert world.observer.servers(owner.id, project.id) == []
    assert not project.folder.exists()
    assert project.unfinished == []
    for table in TABLES:
        column = "id" if table == "projects" else "project_id"
        assert await world.fetch(f"SELECT FROM {table} WHERE {column} = $1", project.id) == [], table
    for row in await world.fetch("SELECT * FROM operations WHERE project_id = $1", project.id):
        code = (row["error"] or {}).get("code")
        assert (row["state"], code) in {("succeeded", None), ("failed", "project_deleted"), ("failed", "superseded")}


async def delete(project: Project) -> None:
    answer = await project.delete()
    assert answer.status_code == 202, answer.text
    assert (await project.delete()).status_code == 404


async def command(http: httpx.AsyncClient, project: Project, action: str, within_s: float) -> None:
    await asyncio.sleep(random.uniform(0, within_s))
    answer = await http.post(f"/api/projects/{project.id}/{action}")
    assert answer.status_code == 202, answer.text


async def check_ended_as_the_last_one_says(project: Project, operations: Sequence[asyncpg.Record]) -> None:
    commands = sorted(
        (row for row in operations if row["generation"] is not None), key=lambda row: int(row["generation"])
    )
    assert [row["generation"] for row in commands] == list(range(1, len(commands) + 1))
    runs = RUNS[commands[-1]["kind"]]
    row = await project.row()
    assert (row["state"], row["generation"]) == ("running" if runs else "stopped", len(commands))
    servers = project.world.observer.servers(project.owner.id, project.id)
    assert len(servers) <= 1
    assert any(server.runs for server in servers) == runs
    assert commands[-1]["state"] == "succeeded"
    for each in commands:
        assert (each["state"], (each["error"] or {}).get("code")) in {("succeeded", None), ("failed", "superseded")}
