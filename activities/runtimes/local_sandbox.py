"""What a local dev server sees of this machine, and how much of it it may use."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from activities.ports import ResourceLimits
from activities.runtimes.spec import CACHE_FOLDER, HOME_FOLDER, PROJECT_FOLDER, WORKSPACE

BOX: Final = "/run/studio"
"""In the sandbox: the folder of the agent's socket."""

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = (
    "alternatives",
    "ca-certificates",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "pki",
    "resolv.conf",
    "services",
    "ssl",
)
_CERTIFICATES: Final = (
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
)
_CGROUPS: Final = Path("/sys/fs/cgroup")
_MIB: Final = 1024 * 1024
_TEMPORARY_BYTES: Final = 256 * _MIB
_PROBE_S: Final = 10
_PERIOD_US: Final = 100_000


@dataclass(frozen=True)
class Places:
    """Folders of one dev server on this machine."""

    project: Path
    cache: Path
    box: Path
    toolchain: Path | None


def certificates() -> dict[str, str]:
    """Variables by which programs trust the authorities of this machine's network, each with a file that is there.

    A dev server's npm and pip go through the same network: without them they retry for minutes, and fail.
    """
    named = {name: os.environ.get(name, "") for name in _CERTIFICATES}
    return {name: path for name, path in named.items() if Path(path).is_absolute() and Path(path).is_file()}


def bwrap_works() -> bool:
    """Whether bubblewrap can make a sandbox here: not where user namespaces are forbidden."""
    if shutil.which("bwrap") is None:
        return False
    nowhere = Path("/usr")
    command = [*bwrap_arguments(Places(nowhere, nowhere, nowhere, None)), "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=_PROBE_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def bwrap_arguments(places: Places) -> list[str]:
    """The sandbox's command line: its own processes and temporary files, the system read-only, nothing else.

    The network is the host's: the server is reached at a port of 127.0.0.1. `.env`, the service's data, homes and
    other projects are not there at all.
    """
    arguments = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--new-session"]
    arguments += ["--unshare-cgroup-try", "--clearenv", "--proc", "/proc", "--dev", "/dev"]
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--perms", "0755", "--dir", "/etc"]
    for path in (Path("/etc") / name for name in _ETC):
        if path.exists():
            arguments += ["--ro-bind", str(path.resolve()), str(path)]
    in_memory = ["--size", str(_TEMPORARY_BYTES), "--perms", "1777", "--tmpfs"]
    # Before the interpreters: they may lie below /tmp themselves, where a clone to try things out often is.
    arguments += [*in_memory, "/tmp", *_passable(Path(HOME_FOLDER)), *in_memory, HOME_FOLDER]  # noqa: S108 -- its own
    for path in [*_interpreters(), *map(Path, sorted(set(certificates().values())))]:
        arguments += [*_passable(path), "--ro-bind", str(path.resolve()), str(path)]
    arguments += [*_passable(Path(PROJECT_FOLDER)), *_passable(Path(BOX))]
    if places.toolchain is not None and places.toolchain.is_dir():
        for entry in sorted(places.toolchain.iterdir()):
            arguments += ["--ro-bind", str(entry), f"{WORKSPACE}/{entry.name}"]
    arguments += ["--bind", str(places.project), PROJECT_FOLDER, "--bind", str(places.cache), CACHE_FOLDER]
    return [*arguments, "--bind", str(places.box), BOX, "--chdir", PROJECT_FOLDER, "--"]


def _passable(path: Path) -> list[str]:
    """Options that make the folders above a mount, which bubblewrap would keep for its own user."""
    above = [parent for parent in reversed(path.parents) if parent != Path("/")]
    return [word for parent in above for word in ("--perms", "0755", "--dir", str(parent))]


def _interpreters() -> list[Path]:
    """Where this Python and its packages (Node among them) are, when that isn't below /usr."""
    found = {Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable).resolve().parent.parent}
    return sorted(path for path in found if not path.is_relative_to("/usr"))


@dataclass(frozen=True)
class Groups:
    """Cgroup folders of one dev server; none where this process may make none."""

    folders: tuple[Path, ...] = ()
    memory_events: Path | None = None

    @property
    def bounded(self) -> bool:
        """Whether the kernel holds memory, CPU and processes to their bounds."""
        return bool(self.folders)


def make_groups(name: str, limits: ResourceLimits) -> Groups:
    """Control groups with the limits set, of version 2 or 1; none without the right to make them."""
    try:
        if (_CGROUPS / "cgroup.controllers").exists():
            return _make_v2(name, limits)
        return _make_v1(name, limits)
    except OSError:
        return Groups()


def remove_groups(name: str) -> None:
    """Remove what `make_groups` made, where a killed supervisor couldn't; one still in use stays."""
    for parent in (_CGROUPS, *(_CGROUPS / controller for controller in ("memory", "pids", "cpu"))):
        with contextlib.suppress(OSError):
            (parent / "studio" / name).rmdir()


def _make_v2(name: str, limits: ResourceLimits) -> Groups:
    parent = _CGROUPS / "studio"
    for folder in (_CGROUPS, parent):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    group = parent / name
    group.mkdir(exist_ok=True)
    (group / "memory.max").write_text(str(limits.memory_mb * _MIB))
    if (group / "memory.swap.max").exists():
        (group / "memory.swap.max").write_text("0")
    (group / "pids.max").write_text(str(limits.pids))
    (group / "cpu.max").write_text(f"{int(limits.cpus * _PERIOD_US)} {_PERIOD_US}")
    return Groups((group,), group / "memory.events")


def _make_v1(name: str, limits: ResourceLimits) -> Groups:
    values = {
        "memory": {"memory.limit_in_bytes": limits.memory_mb * _MIB},
        "pids": {"pids.max": limits.pids},
        "cpu": {"cpu.cfs_period_us": _PERIOD_US, "cpu.cfs_quota_us": int(limits.cpus * _PERIOD_US)},
    }
    folders = []
    for controller, settings in values.items():
        if not (_CGROUPS / controller / "cgroup.procs").exists():
            raise FileNotFoundError(controller)
        group = _CGROUPS / controller / "studio" / name
        group.mkdir(parents=True, exist_ok=True)
        for file, value in settings.items():
            (group / file).write_text(str(value))
        folders.append(group)
    return Groups(tuple(folders), folders[0] / "memory.oom_control")


def owner_of_files(uid: int | None) -> tuple[int, int]:
    """User and group that servers run as: nobody special, and able to write the projects' files."""
    if os.geteuid() == 0:
        chosen = uid if uid is not None else 1000
        return chosen, chosen
    return os.geteuid(), os.getegid()


def reachable_by_others(path: Path) -> bool:
    """Whether every user may pass through the folders above; always so for a process that can't change its own."""
    return os.geteuid() != 0 or all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
