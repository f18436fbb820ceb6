"""`python -m workers.stack up | down`."""

import asyncio
import os
import signal
import sys
import time

from workers.settings import DeploymentMode, load_settings
from workers.stack.cluster import find_cluster
from workers.stack.console import fail, say
from workers.stack.data_directory import DataDirectory, StackError
from workers.stack.engine import choose_mode
from workers.stack.leftovers import end_leftovers
from workers.stack.parts import ports
from workers.stack.ports import require_free
from workers.stack.supervisor import Supervisor

_DOWN_TIMEOUT_S = 90.0


def up() -> None:
    """Run the stack in the foreground until Ctrl-C. Raises `StackError`."""
    settings = load_settings()
    data = DataDirectory(settings.data_dir)
    data.create()
    with data.lock():
        left = end_leftovers(data.run)
        if left:
            say("stack", f"ended what an earlier one left running: {', '.join(left)}")
        require_free(ports(settings))
        mode, reason = asyncio.run(choose_mode(settings))
        say("runtime", f"{mode}: {reason}")
        cluster = None
        if mode is DeploymentMode.KUBERNETES:
            cluster = asyncio.run(find_cluster(settings))
            say("cluster", f"the one of {cluster.kubeconfig}, namespace {settings.kubernetes_namespace}")
        asyncio.run(Supervisor(settings, data, mode, cluster).run())


def down() -> None:
    """End the stack of this data folder; none running is success. Raises `StackError`."""
    data = DataDirectory(load_settings().data_dir)
    supervisor = data.supervisor()
    if supervisor is None:
        left = end_leftovers(data.run)
        say("stack", f"ended {', '.join(left)}" if left else f"nothing runs in {data.root}")
        return
    os.kill(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_TIMEOUT_S
    while data.supervisor() is not None:
        if time.monotonic() > deadline:
            raise StackError(f"The stack (process {supervisor}) didn't end within {_DOWN_TIMEOUT_S:g} s.")
        time.sleep(0.1)
    say("stack", "ended")


def main(words: list[str]) -> None:
    """Run one of the two commands."""
    commands = {"up": up, "down": down}
    if len(words) != 1 or words[0] not in commands:
        sys.exit(__doc__)
    try:
        commands[words[0]]()
    except StackError as error:
        fail(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
