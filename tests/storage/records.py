"""Rows that a test stands on, written without the routes."""

from uuid import uuid4

from sqlalchemy import text

from storage.engine import Database


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
        return int(project_id or 0)
