"""Previews: the tokens that open them, and what is asked of the database on every request that they get."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.credentials import hash_secret
from storage.tables import DevServerRow, PreviewToken, Project, User
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState

TOKEN_PREFIX: Final = "pvt_"  # noqa: S105 -- how tokens begin, not one of them
"""Every token begins so: an app's own `?token=` is never taken for one of ours."""


@dataclass(frozen=True)
class PreviewView:
    """What the waiting page shows. `since`, `now`: by the database's clock. `stage`: of the start that runs."""

    project_state: str
    project_reason: str | None
    state: str
    reason: str | None
    exit_code: int | None
    log_tail: str | None
    since: datetime
    now: datetime
    stage: str | None


async def add_token(session: AsyncSession, ref: ProjectRef, lifetime: timedelta) -> str:
    """Make a token for the project's owner; forgets their expired ones. Returns it, shown only now."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    await session.execute(
        delete(PreviewToken).where(PreviewToken.user_id == ref.user_id, PreviewToken.expires_at < func.now())
    )
    session.add(
        PreviewToken(
            token_hash=hash_secret(token),
            project_id=ref.project_id,
            user_id=ref.user_id,
            expires_at=func.now() + lifetime,
        )
    )
    await session.flush()
    return token


async def spend_token(session: AsyncSession, token: str, ref: ProjectRef) -> bool:
    """Spend the token as a link to this project: true once, whoever asks at the same moment."""
    spent = await session.execute(
        update(PreviewToken)
        .where(
            PreviewToken.token_hash == hash_secret(token),
            PreviewToken.spent_at.is_(None),
            PreviewToken.expires_at > func.now(),
            PreviewToken.project_id == _live_server(ref).with_only_columns(Project.id).scalar_subquery(),
        )
        .values(spent_at=func.now())
        .returning(PreviewToken.project_id)
    )
    return spent.first() is not None


async def server_state(session: AsyncSession, ref: ProjectRef) -> str | None:
    """How the project's dev server stands; None when the project is gone, not this user's, or they are shut out."""
    return await session.scalar(_live_server(ref))


async def server_state_by_token(session: AsyncSession, token: str, ref: ProjectRef) -> str | None:
    """As `server_state`; None also when the token, spent as a link or not, doesn't open this project as a header."""
    return await session.scalar(
        _live_server(ref)
        .join(PreviewToken, PreviewToken.project_id == Project.id)
        .where(PreviewToken.token_hash == hash_secret(token), PreviewToken.expires_at > func.now())
    )


async def view(session: AsyncSession, project_id: int) -> PreviewView | None:
    """How the project and its dev server stand, in one query; None when it is gone."""
    rows = await session.execute(
        select(
            Project.state,
            Project.state_reason,
            DevServerRow.state,
            DevServerRow.reason,
            DevServerRow.exit_code,
            DevServerRow.log_tail,
            DevServerRow.since,
            func.now(),
            DevServerRow.stage,
        )
        .join(DevServerRow, DevServerRow.project_id == Project.id)
        .where(Project.id == project_id)
    )
    row = rows.first()
    return None if row is None else PreviewView(*row)


def _live_server(ref: ProjectRef) -> Select[str]:
    return (
        select(DevServerRow.state)
        .select_from(Project)
        .join(User, User.id == Project.user_id)
        .join(DevServerRow, DevServerRow.project_id == Project.id)
        .where(
            Project.id == ref.project_id,
            Project.user_id == ref.user_id,
            Project.state != ProjectState.DELETING,
            User.is_active,
        )
    )
