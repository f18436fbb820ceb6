"""Passwords: argon2, in threads, a few at a time."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash

from workflows.contracts.errors import UnavailableError

_WAITING = 200


class Passwords:
    """Hashes and verifies. Each takes some 50 ms of CPU and 64 MiB, so at most one per two cores runs at once:
    the event loop and the other requests keep the rest.
    """

    def __init__(self) -> None:
        self._hasher = PasswordHash.recommended()
        self._turns = CapacityLimiter(max(1, (os.cpu_count() or 1) // 2))
        self._threads = CapacityLimiter(self._turns.total_tokens)
        self._nobodys: str | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn. `hash` and `verify` are called within; raises `UnavailableError` in a flood."""
        if self._turns.statistics().tasks_waiting >= _WAITING:
            raise UnavailableError("Too many people are signing in just now; try again in a moment.", retry_after=5)
        async with self._turns:
            yield

    async def hash(self, password: str) -> str:
        """The string to store."""
        return await to_thread.run_sync(self._hasher.hash, password, limiter=self._threads)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether it is the password. None, for nobody's account, is False after the same time."""
        if password_hash is None:
            if self._nobodys is None:
                self._nobodys = await self.hash(secrets.token_urlsafe())
            await to_thread.run_sync(self._hasher.verify, password, self._nobodys, limiter=self._threads)
            return False
        return await to_thread.run_sync(self._hasher.verify, password, password_hash, limiter=self._threads)
