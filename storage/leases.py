"""Leases: who keeps a project's dev server awake, and until when. Idle is decided by them alone, never by silence."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import DevServerRow, Lease, Project
from workflows.contracts.dev_servers import LeaseKind


@dataclass(frozen=True)
class LeaseRecord:
    """One lease. `expires_at` None: until it is given back. `holder`: an id, or a word for a shared one."""

    kind: str
    holder: str
    expires_at: datetime | None


async def renew(session: AsyncSession, project_id: int, kind: LeaseKind, holder: str, ttl_s: float | None) -> None:
    """Take or prolong a lease, and note the activity. `ttl_s` None: until `release`.

    A project that is gone takes no lease: the call does nothing then.
    """
    expires_at = None if ttl_s is None else func.now() + timedelta(seconds=ttl_s)
    # As every writer does: one order of locks, and one strength, or two writers and a deletion would deadlock.
    await session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    alive = await session.execute(
        update(DevServerRow)
        .where(DevServerRow.project_id == project_id)
        .values(last_activity_at=func.now())
        .returning(DevServerRow.project_id)
    )
    if alive.first() is None:
        return
    statement = insert(Lease).values(project_id=project_id, kind=kind, holder=holder, expires_at=expires_at)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[Lease.project_id, Lease.kind, Lease.holder],
            # A lease is never shortened by another process's older wish.
            set_={
                "expires_at": text(
                    "CASE WHEN excluded.expires_at IS NULL OR leases.expires_at IS NULL THEN NULL "
                    "ELSE greatest(leases.expires_at, excluded.expires_at) END"
                )
            },
        )
    )


_PROLONG: Final = text("""
INSERT INTO leases (project_id, kind, holder, expires_at)
VALUES (:project_id, :kind, :holder, now() + make_interval(secs => CAST(:ttl_s AS double precision)))
ON CONFLICT (project_id, kind, holder) DO UPDATE SET expires_at = excluded.expires_at
WHERE leases.expires_at < now() + make_interval(secs => CAST(:ttl_s AS double precision) / 2)
""")


async def prolong(session: AsyncSession, project_id: int, kind: LeaseKind, holder: str, ttl_s: float) -> None:
    """Take a lease, or prolong one that has less than half of `ttl_s` left. The project's row must be locked.

    For holders who say often that they still work: one statement, and no activity noted.
    """
    values = {"project_id": project_id, "kind": kind, "holder": holder, "ttl_s": ttl_s}
    await session.execute(_PROLONG, values)


async def release(session: AsyncSession, project_id: int, kind: LeaseKind, holder: str) -> None:
    """Give a lease back; not held is success."""
    await session.execute(
        delete(Lease).where(Lease.project_id == project_id, Lease.kind == kind, Lease.holder == holder)
    )


async def release_all(session: AsyncSession, project_id: int) -> None:
    """Give back what a stopped server's own traffic held; tasks, approvals and pins outlive a stop."""
    await session.execute(
        delete(Lease).where(
            Lease.project_id == project_id,
            Lease.kind.not_in([LeaseKind.TASK, LeaseKind.APPROVAL, LeaseKind.PIN]),
        )
    )


async def held(session: AsyncSession, project_id: int) -> list[LeaseRecord]:
    """The leases in force now, the longest first."""
    rows = await session.execute(
        select(Lease.kind, Lease.holder, Lease.expires_at)
        .where(Lease.project_id == project_id, or_(Lease.expires_at.is_(None), Lease.expires_at > func.now()))
        .order_by(Lease.expires_at.desc().nulls_first())
    )
    return [LeaseRecord(*row) for row in rows]
