"""What a program in the browser's place can reach, should a page break out into it."""

import asyncio
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from activities import page_confinement
from activities.page_browser import _as_unprivileged, _prepare, _remove, _visit, find_browser
from activities.page_confinement import missing_confinement
from activities.page_view import Visit

FORBIDDEN = ("another file", "other projects", "environment", "memory", "signal", "port", "new file", "udp", "netlink")
ALLOWED = ("own file", "own environment", "system", "gateway", "child")


def pass_to_all(folder: Path) -> None:
    """Take away what would refuse `nobody` anyway: permissions."""
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A browser's folder, beside a file and the projects of all users."""
    pass_to_all(tmp_path)
    (tmp_path / "token").write_text("secret")
    (tmp_path / "projects/users").mkdir(parents=True)
    folder = tmp_path / "profile"
    folder.mkdir()
    (tmp_path / "open").mkdir()
    for each in (folder, tmp_path / "open"):
        each.chmod(0o777)
    return folder


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two servers of this machine: the gateway's and another one."""
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as gateway,
        closing(socket.create_server(("127.0.0.1", 0))) as other,
    ):
        yield gateway.getsockname()[1], other.getsockname()[1]


def attempts(folder: Path, victim: int, ports: tuple[int, int]) -> dict[str, str]:
    return {
        "another file": f"cat {folder.parent}/token",
        "other projects": f"ls {folder.parent}/projects",
        "environment": f"cat /proc/{victim}/environ",
        "memory": f"cat /proc/{victim}/maps",
        "signal": f"kill -CONT {victim}",
        "port": f"echo > /dev/tcp/127.0.0.1/{ports[1]}",
        "new file": f"touch {folder.parent}/open/new",
        "udp": f"echo > /dev/udp/127.0.0.1/{ports[0]}",
        "netlink": "ip link show lo",
        "own file": f"mkdir {folder}/d && echo x > {folder}/d/new && mv {folder}/d/new {folder}/moved",
        "own environment": "cat /proc/self/environ",
        "system": "cat /etc/passwd && ls /usr && head -c 1 /dev/urandom && echo > /dev/null",
        "gateway": f"echo > /dev/tcp/127.0.0.1/{ports[0]}",
        "child": "sleep 60 & kill -KILL $!",
    }


@pytest.mark.parametrize("confined", [True, False])
async def test_one_of_the_same_user_reaches_its_own_and_the_gateway(
    profile: Path, ports: tuple[int, int], confined: bool
) -> None:
    if missing := missing_confinement():
        pytest.skip(f"this machine's Landlock doesn't know {missing}")
    as_who = _as_unprivileged()
    victim = await asyncio.create_subprocess_exec(*as_who, "sleep", "60", env={"SECRET": "of the service"})
    try:
        script = "".join(
            f"if ( {line} ) >/dev/null 2>&1; then echo open {name}; else echo refused {name}; fi\n"
            for name, line in attempts(profile, victim.pid, ports).items()
        )
        command = [*as_who, "/bin/bash", "-c", script]
        if confined:
            around = [sys.executable, "-I", "-S", page_confinement.__file__, str(profile), str(ports[0]), "/bin/bash"]
            command = [*around, *command]
        async with asyncio.timeout(30):
            prober = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            answer, _ = await prober.communicate()
    finally:
        victim.kill()
        await victim.wait()
    word = "refused" if confined else "open"
    expected = [f"{word} {name}" for name in FORBIDDEN] + [f"open {name}" for name in ALLOWED]
    assert answer.decode().splitlines() == expected


@pytest.mark.browser
@pytest.mark.parametrize("confined", [True, False])
async def test_the_browser_itself_reads_nobody_elses_files(profile: Path, confined: bool) -> None:
    if missing := missing_confinement():
        pytest.skip(f"this machine's Landlock doesn't know {missing}")
    program = find_browser()
    assert program is not None
    folder = await asyncio.to_thread(_prepare, program, 1)
    starter = folder / "browser"
    if not confined:
        text = starter.read_text()
        around = text[text.index(sys.executable) : text.index(shlex.join([*_as_unprivileged(), program]))]
        starter.write_text(text.replace(around, ""))
    visit = Visit(
        preview="file://",
        token="none",
        path=str(profile.parent / "token"),
        gateway_port=1,
        starter=str(starter),
        profile=str(folder / "profile"),
        wait_s=0,
        width=320,
        height=240,
    )
    try:
        view = await _visit(visit, folder)
    finally:
        await _remove(folder)
    if confined:
        assert view.error is not None
        assert "ERR_ACCESS_DENIED" in view.error or "ERR_FILE_NOT_FOUND" in view.error
        assert view.text == ""
    else:
        assert (view.error, view.text) == (None, "secret")


SOCKETS = """
import ctypes, socket
from activities import page_confinement

def by_call(*numbers):
    call = ctypes.CDLL(None, use_errno=True).syscall
    if call(*map(ctypes.c_long, numbers)) < 0:
        raise OSError(ctypes.get_errno(), "")

page_confinement._checked(ctypes.CDLL(None, use_errno=True).prctl(page_confinement._NO_NEW_PRIVILEGES, 1, 0, 0, 0))
page_confinement._refuse_sockets()
inet, stream = socket.AF_INET, socket.SOCK_STREAM
attempts = {
    "tcp": lambda: socket.socket(inet, stream),
    "tcp, named": lambda: socket.socket(inet, stream, socket.IPPROTO_TCP),
    "tcp over 6": lambda: socket.socket(socket.AF_INET6, stream),
    "tcp, with bits": lambda: socket.socket(inet, stream | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK),
    "unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "pair": socket.socketpair,
    "udp": lambda: socket.socket(inet, socket.SOCK_DGRAM),
    "udp, with bits": lambda: socket.socket(inet, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC),
    "udp over 6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "raw": lambda: socket.socket(inet, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "mptcp": lambda: socket.socket(inet, stream, 262),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, stream),
    "ring": lambda: by_call(425, 1, 0),
    "foreign number": lambda: by_call(0x40000000 + 41, inet, stream, 0),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        print("refused", name)
    else:
        print("open", name)
"""


async def test_no_socket_is_left_but_tcp_and_this_machines() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SOCKETS),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(page_confinement.__file__).parents[1],
    )
    async with asyncio.timeout(30):
        answers = (await process.communicate())[0].decode().splitlines()
    assert [line for line in answers if line.startswith("open")] == [
        f"open {name}" for name in ("tcp", "tcp, named", "tcp over 6", "tcp, with bits", "unix", "pair")
    ]
    assert len(answers) == 16


async def test_where_a_kernel_can_less_the_rest_is_held(profile: Path) -> None:
    # Each of Landlock's versions has rights of its own, and refuses those of a later one.
    real = page_confinement._version()
    if real < 1:
        pytest.skip("this machine has no Landlock")
    for version in range(1, real + 1):
        around = "from activities import page_confinement as p; p._version = lambda: {}; p.main()"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", around.format(version), str(profile), "1", "/bin/sh"),
            *("/bin/sh", "-c", f"cat {shlex.quote(str(profile.parent / 'token'))} 2>/dev/null || echo refused"),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(page_confinement.__file__).parents[1],
        )
        async with asyncio.timeout(30):
            assert (await process.communicate())[0] == b"refused\n", version
