"""The local driver's engine: starts the dev server and, when asked over a socket, other programs beside it.

It runs in the sandbox (or, without one, in a process group of its own) and ends with its server: what it has started
ends with it. A request is one message on the socket, JSON, with three descriptors for a program's standard streams:

    {"op": "run", "argv": […]}      → {"exit_code": n} when it has ended
    {"op": "stop", "grace_s": s}    → nothing; the server gets TERM, after the grace KILL
"""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from activities.runtimes.inside import processes

_MESSAGE_LIMIT = 256 * 1024
_STREAMS = 3


def main(arguments: Mapping[str, Any]) -> int:
    """`{uid, gid, open_files, processes, box, folder, command, environment}`: serve; its exit code."""
    _lower(arguments)
    environment = dict(arguments["environment"])
    # Bound by a short name (a socket's address has 108 bytes) and renamed: who finds it can connect.
    os.chdir(arguments["box"])
    Path("socket.new").unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("socket.new")
    listener.listen(64)
    server = subprocess.Popen(
        arguments["command"],
        cwd=arguments["folder"],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    Path("socket.new").rename("socket")
    threading.Thread(target=_accept, args=(listener, server, environment), daemon=True).start()
    code = processes.exit_code_of(server.wait())
    os._exit(code)  # threads wait for what ends with us


def _lower(arguments: Mapping[str, Any]) -> None:
    """Become nobody special, within bounds."""
    files = int(arguments["open_files"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if arguments["processes"] is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (int(arguments["processes"]),) * 2)
    if os.geteuid() == 0 and int(arguments["uid"]) != 0:
        os.setgroups([])
        os.setgid(int(arguments["gid"]))
        os.setuid(int(arguments["uid"]))


def _accept(listener: socket.socket, server: "subprocess.Popen[bytes]", environment: dict[str, str]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, server, environment), daemon=True).start()


def _serve(connection: socket.socket, server: "subprocess.Popen[bytes]", environment: dict[str, str]) -> None:
    with connection:
        message, streams, _, _ = socket.recv_fds(connection, _MESSAGE_LIMIT, _STREAMS)
        if not message:
            return
        request = json.loads(message)
        if request["op"] == "stop":
            _stop(server, float(request["grace_s"]))
        elif len(streams) == _STREAMS:
            _run(connection, request["argv"], streams, environment)


def _run(connection: socket.socket, argv: list[str], streams: list[int], environment: dict[str, str]) -> None:
    try:
        child = subprocess.Popen(
            argv, env=environment, stdin=streams[0], stdout=streams[1], stderr=streams[2], start_new_session=True
        )
    finally:
        for stream in streams:
            os.close(stream)
    answer = json.dumps({"exit_code": processes.exit_code_of(child.wait())}).encode()
    with contextlib.suppress(OSError):
        connection.sendall(answer)


def _stop(server: "subprocess.Popen[bytes]", grace_s: float) -> None:
    with contextlib.suppress(OSError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(grace_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(server.pid, signal.SIGKILL)
