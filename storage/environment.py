"""A project's environment variables: names in the clear, values encrypted."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.secret_box import SecretBox
from storage.tables import EnvironmentVariable

_PURPOSE: Final = "environment"


async def names(session: AsyncSession, project_id: int) -> list[str]:
    """The names that are set, sorted."""
    query = select(EnvironmentVariable.name).where(EnvironmentVariable.project_id == project_id)
    return sorted(await session.scalars(query))


async def values(session: AsyncSession, project_id: int, secrets: SecretBox) -> dict[str, str]:
    """Names and values, for the container alone. Raises `SecretUnreadableError` when no key opens one."""
    rows = await session.scalars(select(EnvironmentVariable).where(EnvironmentVariable.project_id == project_id))
    return {row.name: secrets.decrypt(row.value_encrypted, _PURPOSE).decode() for row in rows}


async def replace(
    session: AsyncSession, project_id: int, variables: Mapping[str, str | None], secrets: SecretBox
) -> list[str]:
    """Make these the project's variables, and no others; None keeps the value that the name has.

    A None for a name that has no value is left out. Returns the names that are set then, sorted. The project's row
    must be locked, so that two replacements take turns.
    """
    kept = [name for name, value in variables.items() if value is None]
    await session.execute(
        delete(EnvironmentVariable).where(
            EnvironmentVariable.project_id == project_id, EnvironmentVariable.name.not_in(kept)
        )
    )
    for name, value in variables.items():
        if value is not None:
            encrypted = secrets.encrypt(value.encode(), _PURPOSE)
            session.add(EnvironmentVariable(project_id=project_id, name=name, value_encrypted=encrypted))
    await session.flush()
    return await names(session, project_id)
