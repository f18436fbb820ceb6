"""What the API's tests share: the application on a real uvicorn, people with accounts, and parts that are away."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx
import uvicorn
from fastapi import FastAPI

from activities.errors import RuntimeUnavailableError

PASSWORD = "correct horse battery"


class AbsentRuntime:
    """A runtime whose engine doesn't answer, whatever it is asked."""

    name = "absent"

    def __getattr__(self, name: str) -> None:
        raise RuntimeUnavailableError("The container engine doesn't answer.")

    async def ready(self) -> None:
        raise RuntimeUnavailableError("The container engine doesn't answer.")


@dataclass(frozen=True)
class Account:
    """Somebody who has signed in."""

    user_id: int
    email: str
    password: str
    access_token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Serve the application as production does; gives its address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2, timeout_keep_alive=5
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                if task.done():
                    task.result()
                    raise RuntimeError("the server ended while it started")
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listening.close()


@asynccontextmanager
async def browsing(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client without cookies or redirects of its own making."""
    async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client:
        yield client


async def register(client: httpx.AsyncClient, email: str | None = None, password: str = PASSWORD) -> Account:
    """A new person; their cookie isn't kept, so that one client can speak for many."""
    email = email or f"{uuid4().hex}@example.com"
    answer = await client.post("/api/auth/register", json={"email": email, "password": password})
    assert answer.status_code == 201, answer.text
    client.cookies.clear()
    return account_of(answer.json(), password)


async def login(client: httpx.AsyncClient, email: str, password: str = PASSWORD) -> httpx.Response:
    answer = await client.post("/api/auth/login", data={"username": email, "password": password})
    client.cookies.clear()
    return answer


def account_of(tokens: dict[str, object], password: str = PASSWORD) -> Account:
    user = tokens["user"]
    assert isinstance(user, dict)
    return Account(user["id"], user["email"], password, str(tokens["access_token"]), str(tokens["refresh_token"]))
