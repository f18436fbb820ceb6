"""Failed logins, counted by account and by address in Postgres, so that every API process counts alike."""

import math
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import LoginFailure

FAILURES = 10
WINDOW = timedelta(minutes=5)


async def seconds_to_wait(session: AsyncSession, subjects: list[str]) -> int | None:
    """How long until none of the subjects has `FAILURES` within `WINDOW`; None when that is so now."""
    waits = []
    for subject in subjects:
        tenth_newest = (
            select(func.extract("epoch", LoginFailure.at + WINDOW - func.now()))
            .where(LoginFailure.subject == subject, LoginFailure.at > func.now() - WINDOW)
            .order_by(LoginFailure.at.desc())
            .offset(FAILURES - 1)
            .limit(1)
        )
        left = (await session.execute(tenth_newest)).scalar_one_or_none()
        if left is not None:
            waits.append(max(1, math.ceil(left)))
    return max(waits, default=None)


async def record_failure(session: AsyncSession, subjects: list[str]) -> None:
    """Count one failure against each subject."""
    session.add_all(LoginFailure(subject=subject) for subject in subjects)
    await session.flush()


async def clear(session: AsyncSession, subject: str) -> None:
    """Forget the subject's failures."""
    await session.execute(delete(LoginFailure).where(LoginFailure.subject == subject))
