"""Which ports the stack wants, and who is in the way."""

from collections.abc import Mapping

import psutil

from workers.stack.data_directory import StackError
from workers.stack.own_port import is_free


def require_free(ports: Mapping[str, int]) -> None:
    """Raise `StackError` that names each port of `{variable: port}` that is taken or wanted twice, and by whom."""
    problems = []
    wanted: dict[int, str] = {}
    for variable, port in ports.items():
        if port in wanted:
            problems.append(f"{variable} and {wanted[port]} are both {port}; give one of them another number.")
        elif not is_free(port):
            problems.append(
                f"Port {port} is taken{_holder(port)}. Free it, or set {variable} to another port, "
                f"e.g. `make up {variable}={_suggestion(port, ports)}`."
            )
        wanted[port] = variable
    if problems:
        raise StackError("\n".join(problems))


def _suggestion(port: int, ports: Mapping[str, int]) -> int:
    candidates = range(port + 1, port + 1000)
    return next((n for n in candidates if n not in ports.values() and n < 65536 and is_free(n)), port + 1)  # noqa: PLR2004 -- ports end there


def _holder(port: int) -> str:
    """` by process 123 (name)`, or nothing where the system doesn't tell."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    pids = (c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port)
    pid = next((pid for pid in pids if pid), None)
    try:
        return f" by process {pid} ({psutil.Process(pid).name()})" if pid else ""
    except psutil.NoSuchProcess:
        return ""
