"""Cloning over real TLS from a real git server on loopback, which a policy of these tests alone lets in."""

import asyncio
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from activities.files.git_source import GitAccess, GitLimits, check_url, fetch
from workflows.contracts.errors import InvalidError, UnavailableError

HOST = "git.example.com"


@dataclass
class GitServer:
    """`git http-backend` behind TLS. `stall_s`: how long each answer waits; `redirect`: where each request is sent."""

    port: int
    root: Path
    access: GitAccess
    requests: list[str] = field(default_factory=list)
    stall_s: float = 0.0
    redirect: str | None = None

    def url(self, name: str = "repo.git") -> str:
        return f"https://{HOST}:{self.port}/{name}"


def certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


class _QuietServer(ThreadingHTTPServer):
    """Clients are killed in these tests: what they leave is no news."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


def handler_of(holder: list[GitServer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            holder[0].requests.append(format % args)

        def do_GET(self) -> None:
            server = holder[0]
            time.sleep(server.stall_s)
            if server.redirect is not None:
                self.send_response(302)
                self.send_header("Location", server.redirect)
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            environment = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type") or "",
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            }
            answer = subprocess.run(
                ["git", "http-backend"], input=body, env=environment, stdout=subprocess.PIPE, check=False
            ).stdout
            head, _, content = answer.partition(b"\r\n\r\n")
            lines = [line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line]
            status = next((int(value[:3]) for name, value in lines if name == "Status"), 200)
            self.send_response(status)
            for name, value in lines:
                if name != "Status":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 -- the base class's name

    return Handler


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    authority = certificate(tmp_path)
    holder: list[GitServer] = []
    listening = _QuietServer(("127.0.0.1", 0), handler_of(holder))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    listening.socket = context.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)

    async def loopback(host: str, port: int) -> list[str]:
        assert host == HOST
        return ["127.0.0.1"]

    root = tmp_path / "served"
    root.mkdir()
    holder.append(GitServer(listening.server_address[1], root, GitAccess(loopback, authority)))
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield holder[0]
    listening.shutdown()
    thread.join()
    listening.server_close()


def git(folder: Path, *arguments: str) -> bytes:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def publish(server: GitServer, files: dict[str, bytes]) -> Path:
    work = server.root / "work"
    if not work.exists():
        work.mkdir()
        git(work, "init", "-q")
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    git(work, "add", "-A")
    git(work, "commit", "-qm", "x", "--allow-empty")
    git(server.root, "clone", "-q", "--bare", "work", "repo.git")
    return work


async def test_a_repository_comes_with_its_newest_commit(server: GitServer, tmp_path: Path) -> None:
    work = publish(server, {"a.txt": b"old"})
    (work / "a.txt").write_bytes(b"new")
    (work / "inside").symlink_to("a.txt")
    (work / "outside").symlink_to("/etc/passwd")
    (work / "sub").mkdir()
    (work / "sub/up").symlink_to("../../x")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "y")
    git(work, "checkout", "-qb", "feature")
    (work / "a.txt").write_bytes(b"feature")
    git(work, "commit", "-qam", "z")
    git(work, "push", "-q", str(server.root / "repo.git"), "main", "feature")
    target = tmp_path / "target"
    await fetch(server.url(), None, target, access=server.access)
    assert (target / "a.txt").read_bytes() == b"new"
    assert (target / "inside").is_symlink()
    assert not (target / "outside").is_symlink()
    assert not (target / "sub/up").is_symlink()
    assert len(git(target, "log", "--oneline").splitlines()) == 1
    assert not list((target / ".git").glob("hooks/*"))
    await fetch(server.url(), "feature", tmp_path / "branch", access=server.access)
    assert (tmp_path / "branch/a.txt").read_bytes() == b"feature"


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/a/b",
        "git://github.com/a/b",
        "ssh://git@github.com/a/b",
        "git@github.com:a/b",
        "file:///etc",
        "/etc",
        "ext::sh -c id",
        "https://user:secret@github.com/a/b",
        "https://@github.com/a",
        "https://github.com/a?x=1",
        "https://github.com/a#x",
        "https:///a",
        "https://-upload/a",
        "https://github.com:99999/a",
        "https://github.com/a b",
        "https://gith\u00fcb.com/a",
        "https://github.com/a\n",
        "https://[::1]/a",
        "",
    ],
)
async def test_addresses_that_are_refused_unseen(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        check_url(url)
    assert caught.value.code == "bad_git_url"
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "169.254.169.254", "10.0.0.1", "0.0.0.0", "2130706433", "0x7f.1", "100.64.0.1"]
)
async def test_hosts_within_are_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        await fetch(f"https://{host}/repo.git", None, tmp_path / "target")
    assert caught.value.code == "bad_git_url"


async def test_a_redirect_is_not_followed(server: GitServer, tmp_path: Path) -> None:
    publish(server, {"a": b""})
    server.redirect = f"https://127.0.0.1:{server.port}/elsewhere.git/info/refs"
    with pytest.raises(InvalidError) as caught:
        await fetch(server.url(), None, tmp_path / "target", access=server.access)
    assert caught.value.code == "git_failed"
    assert not any("elsewhere" in line for line in server.requests)
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["random", "zeros", "files"])
async def test_a_large_repository_is_cut_off(server: GitServer, tmp_path: Path, kind: str) -> None:
    contents = {
        "random": {"big": os.urandom(6_000_000)},
        "zeros": {"big": bytes(6_000_000)},  # a few kilobytes on the way, megabytes when checked out
        "files": {f"f{n}": b"" for n in range(300)},
    }
    publish(server, contents[kind])
    limits = GitLimits(size=2_000_000, files=200)
    with pytest.raises(InvalidError) as caught:
        await fetch(server.url(), None, tmp_path / "target", limits, access=server.access)
    assert caught.value.code == "git_too_large"
    assert not (tmp_path / "target").exists()


async def test_a_slow_server_is_left_with_no_process(server: GitServer, tmp_path: Path) -> None:
    publish(server, {"a": b""})
    server.stall_s = 20
    began = time.monotonic()
    with pytest.raises(InvalidError) as caught:
        await fetch(server.url(), None, tmp_path / "target", GitLimits(timeout_s=0.7), access=server.access)
    assert caught.value.code == "git_timeout"
    assert time.monotonic() - began < 2.5
    assert not (tmp_path / "target").exists()
    assert not gits(tmp_path)


async def test_a_cancelled_fetch_leaves_nothing(server: GitServer, tmp_path: Path) -> None:
    publish(server, {"a": b""})
    server.stall_s = 20
    task = asyncio.create_task(fetch(server.url(), None, tmp_path / "target", access=server.access))
    await asyncio.sleep(0.5)
    assert gits(tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gits(tmp_path)
    assert not (tmp_path / "target").exists()


def gits(folder: Path) -> list[str]:
    """The git processes that clone into the folder."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = line.read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "clone" in command and str(folder / "target") in command:
            found.append(command)
    return found


async def test_failures_are_told_apart(server: GitServer, tmp_path: Path) -> None:
    publish(server, {"a": b""})
    for url, ref in ((server.url("missing.git"), None), (server.url(), "missing"), (server.url(), "--upload-pack=x")):
        with pytest.raises(InvalidError) as caught:
            await fetch(url, ref, tmp_path / "target", access=server.access)
        assert caught.value.code == "git_failed"
    with pytest.raises(UnavailableError) as passing:
        await fetch(f"https://{HOST}:1/repo.git", None, tmp_path / "target", access=server.access)
    assert passing.value.code == "git_failed"
    with pytest.raises(InvalidError):  # the authority of these tests isn't one of the machine's
        await fetch(server.url(), None, tmp_path / "target", access=GitAccess(server.access.resolve))


async def test_the_machines_own_configuration_counts_for_nothing(
    server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, {"a": b"", ".gitmodules": f'[submodule "s"]\npath = s\nurl = {server.url()}\n'.encode()})
    mark = tmp_path / "mark"
    home = tmp_path / "home"
    (home / "template/hooks").mkdir(parents=True)
    hook = home / "template/hooks/post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(f"[init]\ntemplateDir = {home}/template\n[http]\nproxy = http://127.0.0.1:1\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    await fetch(server.url(), None, tmp_path / "target", access=server.access)
    assert not mark.exists()
