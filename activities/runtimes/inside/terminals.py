"""Shells on a PTY that outlive their clients: one host process for each session, reached by a socket in a tmpfs.

A client's bytes come to the host in frames `kind (1) length (4, big-endian) payload`: `d` data, `r` JSON
`{cols, rows}`. What the shell says goes back as it is, the last 64 KiB first. A session ends with its shell, or after
hours without a client.
"""

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from activities.runtimes.inside import processes

FULL = 75
"""Exit code of `attach` when the project has as many sessions as it may."""

_REPLAY = 64 * 1024
_PENDING = 256 * 1024
_STALLED_S = 30.0
_GRACE_S = 0.5
_HEADER = struct.Struct(">cI")
_FRAME_LIMIT = 1024 * 1024
_CONNECT_S = 5.0


def attach(arguments: Mapping[str, Any]) -> int:
    """`{folder, session, token, cwd, cols, rows, limit, idle_s}`: join the session, made when it isn't there.

    Frames from standard input go to its host; standard output gets the shell's bytes. 0 when the shell has ended.
    """
    folder = Path(arguments["folder"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder):
        connection = _join(folder / str(arguments["session"]))
        if connection is None:
            if _living(folder) >= int(arguments["limit"]):
                return FULL
            connection = _make(folder / str(arguments["session"]), arguments)
    size = json.dumps({"cols": arguments["cols"], "rows": arguments["rows"]}).encode()
    connection.sendall(_HEADER.pack(b"r", len(size)) + size)
    return _pump(connection)


def _pump(connection: socket.socket) -> int:
    """Bytes both ways until the shell has ended or the client has gone."""
    sources: list[Any] = [0, connection]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if connection in ready:
            try:
                data = connection.recv(65536)
            except ConnectionError:
                return 0
            if not data:
                return 0
            while data:
                data = data[os.write(1, data) :]
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return 0
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One maker of sessions at a time."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by closing alone: a host that was forked meanwhile has it too
        os.close(descriptor)


def _join(path: Path) -> "socket.socket | None":
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionError):
        connection.close()
        return None
    return connection


def _living(folder: Path) -> int:
    """How many sessions have a host; the sockets of dead ones are removed."""
    count = 0
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        connection = _join(path)
        if connection is None:
            path.unlink(missing_ok=True)
        else:
            connection.close()
            count += 1
    return count


def _make(path: Path, arguments: Mapping[str, Any]) -> socket.socket:
    """Start the session's host, detached from this call, and join it."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    if os.fork() == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
                _Host(path, listener, arguments).serve()
        finally:
            os._exit(0)
    os.wait()
    listener.close()
    connection = _join(path)
    if connection is None:
        raise SystemExit(1)
    return connection


class _Client:
    """One attached client: what it has sent, unparsed, and what it hasn't taken yet."""

    def __init__(self, connection: socket.socket, replay: bytes) -> None:
        self.connection = connection
        self.received = bytearray()
        self.pending = bytearray(replay)
        self.moved_at = time.monotonic()
        connection.setblocking(False)  # noqa: FBT003 -- the socket module's own signature


class _Host:
    """A shell and its clients."""

    def __init__(self, path: Path, listener: socket.socket, arguments: Mapping[str, Any]) -> None:
        self._path = path
        self._listener = listener
        self._token = str(arguments["token"])
        self._idle_s = float(arguments["idle_s"])
        self._replay = bytearray()
        self._clients: list[_Client] = []
        self._alone_since = time.monotonic()
        listener.setblocking(False)  # noqa: FBT003 -- the socket module's own signature
        self._shell, self._terminal = _spawn_shell(arguments)

    def serve(self) -> None:
        """Until the shell ends or nobody has come for long."""
        try:
            while self._turn():
                pass
        finally:
            self._path.unlink(missing_ok=True)
            self._flush()
            os.close(self._terminal)
            processes.end(lambda: processes.descendants(os.getpid()) | processes.marked(self._token), grace_s=_GRACE_S)

    def _turn(self) -> bool:
        """One round of the loop; False at the end."""
        self._drop_stalled()
        if self._clients:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > self._idle_s:
            return False
        crowded = any(len(client.pending) > _PENDING for client in self._clients)
        sources: list[Any] = [self._listener, *(client.connection for client in self._clients)]
        if not crowded:
            sources.append(self._terminal)
        targets = [client.connection for client in self._clients if client.pending]
        readable, writable, _ = select.select(sources, targets, [], 5.0)
        for client in list(self._clients):
            if client.connection in writable:
                self._send(client)
            if client.connection in readable:
                self._receive(client)
        if self._listener in readable:
            self._accept()
        return self._terminal not in readable or self._listen_to_shell()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            self._clients.append(_Client(connection, bytes(self._replay)))

    def _listen_to_shell(self) -> bool:
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: the last process on the terminal has gone
            data = b""
        self._replay += data
        del self._replay[:-_REPLAY]
        for client in self._clients:
            client.pending += data
        return bool(data)

    def _send(self, client: _Client) -> None:
        try:
            sent = client.connection.send(client.pending)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.moved_at = time.monotonic()
        del client.pending[:sent]

    def _receive(self, client: _Client) -> None:
        try:
            data = client.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.received += data
        while len(client.received) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(client.received)
            if length > _FRAME_LIMIT:
                self._drop(client)
                return
            if len(client.received) < _HEADER.size + length:
                return
            payload = bytes(client.received[_HEADER.size : _HEADER.size + length])
            del client.received[: _HEADER.size + length]
            self._obey(kind, payload)

    def _obey(self, kind: bytes, payload: bytes) -> None:
        if kind == b"r":
            size = json.loads(payload)
            set_size(self._terminal, int(size["cols"]), int(size["rows"]))
            return
        with contextlib.suppress(OSError):
            while payload:
                payload = payload[os.write(self._terminal, payload) :]

    def _drop_stalled(self) -> None:
        for client in list(self._clients):
            if not client.pending:
                client.moved_at = time.monotonic()
            elif len(client.pending) > _PENDING and time.monotonic() - client.moved_at > _STALLED_S:
                self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            client.connection.close()

    def _flush(self) -> None:
        """What the shell said last, to those who still listen."""
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.connection.settimeout(1.0)
                client.connection.sendall(client.pending)
            self._drop(client)


def _spawn_shell(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """The shell's process id and the terminal's master side."""
    processes.adopt_orphans()
    shell = shutil.which("bash") or "/bin/sh"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.chdir(arguments["cwd"])
        environment = {**os.environ, "TERM": "xterm-256color", processes.MARK: str(arguments["token"])}
        os.execve(shell, [shell, "-i"], environment)  # noqa: S606 -- the user's own shell, in their own container
    set_size(terminal, int(arguments["cols"]), int(arguments["rows"]))
    return pid, terminal


def set_size(terminal: int, cols: int, rows: int) -> None:
    """Tell the kernel the window's size; it tells the shell."""
    bounded = [max(1, min(value, 1000)) for value in (rows, cols)]
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *bounded, 0, 0))
