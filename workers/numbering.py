"""Where a stack's user ids begin."""

from sqlalchemy import text

from storage.engine import Database

_BEGIN = text(
    "SELECT setval(pg_get_serial_sequence('users', 'id'), :first, false) "
    "WHERE NOT EXISTS (SELECT FROM users) "
    "AND (SELECT coalesce(last_value, 0) < :first FROM pg_sequences WHERE sequencename = 'users_id_seq')"
)


async def begin_user_ids(database: Database, first: int) -> None:
    """Give the first user this id. Later calls, and a database that has users, change nothing.

    Names of containers and preview hosts follow from ids: stacks that share an engine or a host name must not both
    begin at 1.
    """
    async with database.transaction() as session:
        await session.execute(_BEGIN, {"first": first})
