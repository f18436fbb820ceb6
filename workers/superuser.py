"""Make a registered user a superuser: `make superuser EMAIL=ada@example.com`.

For the database of `DATABASE_URL`, or that of the stack which runs in `DATA_DIR`. Nobody can do it over the API but
another superuser, so the first one is made here, by whoever can reach the database anyway.
"""

import asyncio
import sys

from storage import users
from storage.engine import Database
from workers.settings import Settings, load_settings
from workers.stack.data_directory import DataDirectory
from workers.stack.postgres import EmbeddedPostgres
from workflows.contracts.errors import StudioError


async def promote(url: str, email: str) -> str:
    """Promote the user with this email, in any case. Returns what to tell. Raises `StudioError`."""
    database = Database(url)
    try:
        async with database.transaction() as session:
            user = await users.find_by_email(session, email)
            if user is None:
                return f"Nobody is registered as {email}: register first, then run this again."
            await users.set_flags(session, user.id, is_superuser=True)
            return f"{user.email} (user {user.id}) is a superuser now."
    finally:
        await database.close()


def main(words: list[str]) -> None:
    """Promote one user."""
    if len(words) != 1 or not words[0]:
        sys.exit(__doc__)
    settings = load_settings()
    try:
        print(asyncio.run(promote(_database_url(settings), words[0])))
    except FileNotFoundError:
        sys.exit(f"There is no database in {settings.data_dir}: run `make up` first, or set DATA_DIR or DATABASE_URL.")
    except StudioError as error:
        sys.exit(error.detail)


def _database_url(settings: Settings) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return EmbeddedPostgres(DataDirectory(settings.data_dir).root / "postgres").url()


if __name__ == "__main__":
    main(sys.argv[1:])
