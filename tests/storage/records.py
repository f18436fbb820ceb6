"""Rows that a test stands on, written without the routes."""

from typing import Any
from uuid import uuid4

from sqlalchemy import text

from storage import dev_servers, event_log, operations, projects, users
from storage.engine import Database
from storage.operations import OperationRecord
from storage.projects import NewProject, ProjectRecord
from workflows.contracts.dev_servers import DevServerAction
from workflows.contracts.operations import OperationKind
from workflows.contracts.projects import ProjectState


async def new_project(database: Database, user_id: int | None = None) -> int:
    """A ready project, of a new user unless `user_id` is given; returns its id."""
    async with database.transaction() as session:
        if user_id is None:
            user_id = await session.scalar(
                text("INSERT INTO users (email, password_hash) VALUES (:email, '') RETURNING id"),
                {"email": f"{uuid4()}@example.com"},
            )
        project_id = await session.scalar(
            text("INSERT INTO projects (user_id, name, state) VALUES (:user_id, 'p', 'ready') RETURNING id"),
            {"user_id": user_id},
        )
        assert project_id is not None
        await event_log.begin(session, project_id)
        return int(project_id)


async def new_dev_server(database: Database) -> ProjectRecord:
    """A ready project as the service makes it, of a new user: with its dev server's row and its first two events."""
    async with database.transaction() as session:
        user = await users.create(session, email=f"{uuid4()}@example.com", name=None, password_hash="")
        project = await projects.create(session, NewProject(user.id, "p", template="static"), limit=10)
        await projects.set_state(session, project.id, ProjectState.READY)
        return project


async def command(database: Database, project: ProjectRecord, action: DevServerAction) -> OperationRecord:
    """Accept a command as the API does: under the project's lock, with its operation."""
    async with database.transaction() as session:
        await projects.lock(session, project.id)
        accepted = await dev_servers.accept(session, project.id, action)
        return await operations.create(
            session,
            user_id=project.user_id,
            project_id=project.id,
            kind=OperationKind(f"{action}_dev_server"),
            generation=accepted.generation,
        )


async def log_of(database: Database, project_id: int) -> list[tuple[int, str, dict[str, Any]]]:
    """The project's whole log: number, type, data."""
    async with database.reading() as session:
        rows = await session.execute(
            text("SELECT seq, type, data FROM events WHERE project_id = :id ORDER BY seq"), {"id": project_id}
        )
        return [(row.seq, row.type, row.data) for row in rows]
