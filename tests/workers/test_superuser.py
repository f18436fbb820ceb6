from storage import users
from storage.engine import Database
from workers.superuser import promote


async def test_a_registered_user_becomes_a_superuser(database: Database, database_url: str) -> None:
    async with database.transaction() as session:
        user = await users.create(session, email="Ada@example.com", name=None, password_hash="x")
    assert await promote(database_url, "ada@EXAMPLE.com") == f"Ada@example.com (user {user.id}) is a superuser now."
    async with database.transaction() as session:
        assert (await users.get(session, user.id)).is_superuser


async def test_an_unknown_one_is_told_to_register(database_url: str) -> None:
    assert "register first" in await promote(database_url, "nobody@example.com")
