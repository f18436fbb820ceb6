"""Users' virtual keys at the LLM proxy, encrypted, with what the proxy has still to be told of them.

Whoever changes what a user may spend, or whether they may, marks the key stale in the same transaction; `OnboardUser`
tells the proxy and takes the mark away. A key that must no longer be used is emptied at once: nobody calls with it
while the proxy is away.
"""

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.engine import Database
from storage.secret_box import SecretBox, SecretUnreadableError
from storage.statements import Statement
from storage.tables import AgentTaskRow, ModelKey, User

_PURPOSE: Final = "model-key"
_NO_KEY: Final = b""


@dataclass(frozen=True)
class KeyState:
    """How things stand with a user's key. `version` 0: there is no row. `usable`: there is a key that can be read."""

    version: int
    usable: bool
    is_stale: bool


async def key_of(session: AsyncSession, user_id: int, secrets: SecretBox) -> str | None:
    """The user's key; None when there is none, it is being replaced, or no secret key opens it any more.

    Start `OnboardUser` then: it makes one.
    """
    encrypted = await session.scalar(select(ModelKey.key_encrypted).where(ModelKey.user_id == user_id))
    return None if encrypted is None else _opened(encrypted, secrets)


@dataclass(frozen=True)
class Caller:
    """For whom a task calls which model.

    `key` None: there is none that can be used, or the proxy has still to hear of another budget, and would refuse it
    by the old one.
    """

    model: str
    is_active: bool
    key: str | None = field(repr=False)


_CALLER: Final = Statement(
    select(AgentTaskRow.model, User.is_active, ModelKey.key_encrypted, ModelKey.is_stale)
    .join_from(AgentTaskRow, User, User.id == AgentTaskRow.user_id)
    .outerjoin(ModelKey, ModelKey.user_id == User.id)
    .where(AgentTaskRow.id == bindparam("task_id"))
)


async def caller(database: Database, task_id: UUID, secrets: SecretBox) -> Caller | None:
    """What a task's next model call needs to know, in one round trip; None when the task is gone."""
    rows = await database.fetch(_CALLER, task_id=task_id)
    if not rows:
        return None
    model, is_active, encrypted, is_stale = rows[0]
    return Caller(model, is_active, None if encrypted is None or is_stale else _opened(encrypted, secrets))


async def state_of(session: AsyncSession, user_id: int, secrets: SecretBox) -> KeyState:
    """What `OnboardUser` decides by."""
    row = await session.get(ModelKey, user_id, populate_existing=True)
    if row is None:
        return KeyState(0, usable=False, is_stale=False)
    return KeyState(row.version, usable=_opened(row.key_encrypted, secrets) is not None, is_stale=row.is_stale)


async def store(
    session: AsyncSession, user_id: int, key: str, secrets: SecretBox, *, after_version: int, is_stale: bool
) -> bool:
    """Keep a key that was made when the row had `after_version`. False: somebody was faster, nothing is kept."""
    values = {
        "key_encrypted": secrets.encrypt(key.encode(), _PURPOSE),
        "version": after_version + 1,
        "is_stale": is_stale,
        "closed_by": secrets.mark,
    }
    if after_version == 0:
        made = insert(ModelKey).values(user_id=user_id, **values).on_conflict_do_nothing()
        return (await session.execute(made.returning(ModelKey.user_id))).first() is not None
    unchanged = (ModelKey.user_id == user_id, ModelKey.version == after_version)
    changed = update(ModelKey).where(*unchanged).values(**values)
    return (await session.execute(changed.returning(ModelKey.user_id))).first() is not None


async def empty(session: AsyncSession, user_id: int) -> None:
    """Let nobody call with the user's key from now on; `OnboardUser` makes a new one, or revokes it for good."""
    await session.execute(
        update(ModelKey)
        .where(ModelKey.user_id == user_id)
        .values(key_encrypted=_NO_KEY, version=ModelKey.version + 1, is_stale=True)
    )


async def mark_stale(session: AsyncSession, user_id: int) -> None:
    """Have the proxy told of the user's budget."""
    changed = {"version": ModelKey.version + 1, "is_stale": True}
    await session.execute(update(ModelKey).where(ModelKey.user_id == user_id).values(**changed))


async def mark_told(session: AsyncSession, user_id: int, *, version: int) -> None:
    """Take the mark away, unless something has changed since `version`."""
    unchanged = (ModelKey.user_id == user_id, ModelKey.version == version)
    await session.execute(update(ModelKey).where(*unchanged).values(is_stale=False))


async def remove(session: AsyncSession, user_id: int, *, version: int) -> None:
    """Forget a key that the proxy has revoked, unless something has changed since `version`."""
    await session.execute(delete(ModelKey).where(ModelKey.user_id == user_id, ModelKey.version == version))


async def users_to_onboard(session: AsyncSession, *, limit: int) -> list[int]:
    """Active users without a key, and users of whose key the proxy has to be told."""
    without = select(User.id).where(User.is_active, ~select(ModelKey).where(ModelKey.user_id == User.id).exists())
    stale = select(ModelKey.user_id).where(ModelKey.is_stale)
    return sorted({*await session.scalars(stale.limit(limit)), *await session.scalars(without.limit(limit))})[:limit]


async def close_anew(session: AsyncSession, secrets: SecretBox, *, limit: int) -> int:
    """Encrypt with today's secret key what an older one has closed, and empty what none opens. How many."""
    older = select(ModelKey).where(ModelKey.closed_by != secrets.mark, ModelKey.key_encrypted != _NO_KEY)
    rows = (await session.scalars(older.limit(limit).with_for_update(skip_locked=True))).all()
    for row in rows:
        key = _opened(row.key_encrypted, secrets)
        if key is None:
            row.key_encrypted, row.version, row.is_stale = _NO_KEY, row.version + 1, True
        else:
            row.key_encrypted, row.closed_by = secrets.encrypt(key.encode(), _PURPOSE), secrets.mark
    await session.flush()
    return len(rows)


def _opened(encrypted: bytes, secrets: SecretBox) -> str | None:
    if encrypted == _NO_KEY:
        return None
    try:
        return secrets.decrypt(encrypted, _PURPOSE).decode()
    except SecretUnreadableError:
        return None
