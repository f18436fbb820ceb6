"""Run one command by `sh`, in the foreground of this process, and leave nothing of it behind."""

import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from activities.runtimes.inside import processes

TIMED_OUT = 124
NO_FOLDER = 126
_GRACE_S = 1.0


def main(arguments: Mapping[str, Any]) -> int:
    """`{token, command, cwd, environment, timeout_s}`: run it on this process's own output, give its exit code.

    Ends it, and all that it started, when standard input closes (the caller has gone), when `timeout_s` is over
    (exit code 124), and when its shell has ended: what a command leaves in the background does not outlive it.
    """
    processes.adopt_orphans()
    child = start(arguments, stdout=None)
    if child is None:
        return NO_FOLDER
    code = _await(child, float(arguments["timeout_s"]))
    # Our own ends of the pipes go last: the caller sees the end of the output when the tree is gone.
    return end_tree(child, str(arguments["token"]), code)


def start(arguments: Mapping[str, Any], *, stdout: int | None) -> "subprocess.Popen[bytes] | None":
    """Start the command; `stdout` given takes standard error too. None, said on standard error: no such folder."""
    environment = {**os.environ, **arguments["environment"], processes.MARK: str(arguments["token"])}
    try:
        return subprocess.Popen(
            ["sh", "-c", arguments["command"]],
            cwd=arguments["cwd"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=None if stdout is None else subprocess.STDOUT,
            start_new_session=True,
        )
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        print(f"studio: {error.strerror}: {error.filename}", file=sys.stderr)  # noqa: T201 -- the command's stderr
        return None


def end_tree(child: "subprocess.Popen[bytes]", token: str, code: int | None) -> int:
    """End what is left below this process. `code` None: the child's own."""
    processes.end(lambda: processes.descendants(os.getpid()) | processes.marked(token), grace_s=_GRACE_S)
    returncode = child.wait()
    return processes.exit_code_of(returncode) if code is None else code


def _await(child: "subprocess.Popen[bytes]", timeout_s: float) -> int | None:
    """Wait for the child, the caller's going, or the time's end. The exit code when it isn't the child's own."""
    ended = ending(child)
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is ended:
                    return None
                if not os.read(0, 65536):
                    return 128 + 15
    return TIMED_OUT


def ending(child: "subprocess.Popen[bytes]", then: Callable[[], None] | None = None) -> BinaryIO:
    """A pipe that becomes readable when the child has ended, for a selector."""
    reader, writer = os.pipe()

    def wait() -> None:
        child.wait()
        if then is not None:
            then()
        os.close(writer)

    threading.Thread(target=wait, daemon=True).start()
    return os.fdopen(reader, "rb", buffering=0)


def kill(arguments: Mapping[str, Any]) -> int:
    """`{token}`: end every process of that run. 0 when none is left."""
    return 0 if processes.end(lambda: processes.marked(str(arguments["token"])), grace_s=_GRACE_S) else 1
