"""Rows that a storage test stands on."""

from uuid import uuid4

from sqlalchemy import text

from storage.engine import Database


async def new_project(database: Database) -> int:
    """A ready project of a new user; returns its id."""
    async with database.transaction() as session:
        user_id = await session.scalar(
            text("INSERT INTO users (email, password_hash) VALUES (:email, '') RETURNING id"),
            {"email": f"{uuid4()}@example.com"},
        )
        project_id = await session.scalar(
            text("INSERT INTO projects (user_id, name, state) VALUES (:user_id, 'p', 'ready') RETURNING id"),
            {"user_id": user_id},
        )
        return int(project_id or 0)
