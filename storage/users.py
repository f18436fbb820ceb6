"""Users: rows, found without regard to the case of their email."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from sqlalchemy import delete as delete_rows
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import User
from workflows.contracts.errors import ConflictError, NotFoundError


@dataclass(frozen=True)
class UserRecord:
    """A user as stored. `password_hash` is argon2's string and never shown. `monthly_budget_usd` None: the default."""

    id: int
    email: str
    name: str | None
    password_hash: str = field(repr=False)
    is_active: bool
    is_superuser: bool
    created_at: datetime
    monthly_budget_usd: Decimal | None = None
    is_leaving: bool = False


def user_record(row: User) -> UserRecord:
    """The record of a row."""
    return UserRecord(**{name: getattr(row, name) for name in UserRecord.__dataclass_fields__})


async def create(session: AsyncSession, *, email: str, name: str | None, password_hash: str) -> UserRecord:
    """Write a new user. Raises `ConflictError` `email_taken`, also for the loser of two at once."""
    statement = (
        insert(User)
        .values(email=email, name=name, password_hash=password_hash)
        .on_conflict_do_nothing(index_elements=[func.lower(User.email)])
        .returning(User)
    )
    row = (await session.execute(statement)).scalar_one_or_none()
    if row is None:
        raise ConflictError("There is an account with this email already.", code="email_taken")
    return user_record(row)


async def get(session: AsyncSession, user_id: int) -> UserRecord:
    """One user. Raises `NotFoundError`."""
    return _found(await session.get(User, user_id))


async def lock(session: AsyncSession, user_id: int) -> UserRecord | None:
    """One user, whose sessions and password nobody else changes until this transaction ends."""
    statement = select(User).where(User.id == user_id).with_for_update(key_share=True)
    row = (await session.execute(statement)).scalar_one_or_none()
    return None if row is None else user_record(row)


async def find_by_email(session: AsyncSession, email: str) -> UserRecord | None:
    """The user with this email in any case."""
    statement = select(User).where(func.lower(User.email) == func.lower(email))
    row = (await session.execute(statement)).scalar_one_or_none()
    return None if row is None else user_record(row)


async def rename(session: AsyncSession, user_id: int, name: str | None) -> UserRecord:
    """Change the name. Raises `NotFoundError`."""
    statement = update(User).where(User.id == user_id).values(name=name).returning(User)
    return _found((await session.execute(statement)).scalar_one_or_none())


async def set_password_hash(session: AsyncSession, user_id: int, password_hash: str) -> None:
    """Replace the password."""
    await session.execute(update(User).where(User.id == user_id).values(password_hash=password_hash))


async def set_flags(
    session: AsyncSession, user_id: int, *, is_active: bool | None = None, is_superuser: bool | None = None
) -> UserRecord:
    """Change what isn't None. Raises `NotFoundError`."""
    row = _found(await lock(session, user_id))
    statement = (
        update(User)
        .where(User.id == user_id)
        .values(
            is_active=row.is_active if is_active is None else is_active,
            is_superuser=row.is_superuser if is_superuser is None else is_superuser,
        )
        .returning(User)
    )
    return user_record((await session.execute(statement.execution_options(populate_existing=True))).scalar_one())


async def page(session: AsyncSession, *, after: int, limit: int) -> list[UserRecord]:
    """Users by id, those above `after`."""
    statement = select(User).where(User.id > after).order_by(User.id).limit(limit)
    return [user_record(row) for row in (await session.execute(statement)).scalars()]


async def set_monthly_budget(session: AsyncSession, user_id: int, budget_usd: Decimal | None) -> UserRecord:
    """Bound what the user's model calls may cost in a month; None: the default. Raises `NotFoundError`."""
    _found(await lock(session, user_id))
    statement = update(User).where(User.id == user_id).values(monthly_budget_usd=budget_usd).returning(User)
    return user_record((await session.execute(statement.execution_options(populate_existing=True))).scalar_one())


async def leave(session: AsyncSession, user_id: int) -> UserRecord:
    """Shut the user out for good; `OffboardUser` removes what is theirs. Raises `NotFoundError`."""
    _found(await lock(session, user_id))
    statement = update(User).where(User.id == user_id).values(is_active=False, is_leaving=True).returning(User)
    return user_record((await session.execute(statement.execution_options(populate_existing=True))).scalar_one())


async def leaving(session: AsyncSession, *, limit: int) -> list[int]:
    """Users who are being deleted."""
    return list(await session.scalars(select(User.id).where(User.is_leaving).order_by(User.id).limit(limit)))


async def delete(session: AsyncSession, user_id: int) -> None:
    """Remove the row and all that hangs on it; gone already is success."""
    await session.execute(delete_rows(User).where(User.id == user_id))


def _found(row: User | UserRecord | None) -> UserRecord:
    if row is None:
        raise NotFoundError
    return user_record(row) if isinstance(row, User) else row
