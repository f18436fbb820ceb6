"""The local driver: a process group per dev server on a free loopback port, for a machine without containers.

bubblewrap makes a sandbox of it where it works. Where it doesn't, a dev server is a plain process of this machine's
user, and `isolation` says so. Either way it is meant for a single trusted user: the network is the host's own.

Nothing is kept in this process: `DATA_DIR/run/dev-servers/{project}/` tells what runs, a lock whether it does, and a
supervisor of its own (`inside/supervisor.py`) outlives the service and writes down log and exit code.
"""

import asyncio
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from activities.errors import (
    ContainerMissingError,
    NotRunningError,
    ResourcesExhaustedError,
    RuntimeUnavailableError,
    SpecInvalidError,
)
from activities.ports import (
    ContainerStatus,
    DevServerSpec,
    StageListener,
)
from activities.runtimes.guest import PROGRAM, Guest, message
from activities.runtimes.guest_runtime import GuestRuntime
from activities.runtimes.inside.processes import MARK
from activities.runtimes.local_channels import LocalChannel, ask_to_stop, open_process
from activities.runtimes.local_log import read_log
from activities.runtimes.local_sandbox import (
    BOX,
    Groups,
    Places,
    bwrap_arguments,
    bwrap_works,
    certificates,
    make_groups,
    owner_of_files,
    reachable_by_others,
    remove_groups,
)
from activities.runtimes.local_state import Record, ServerFolder
from activities.runtimes.probing import answers_soon
from activities.runtimes.spec import (
    CACHE_FOLDER,
    HOME_FOLDER,
    LAUNCHER,
    PROJECT_FOLDER,
    WORKSPACE,
    Surroundings,
    check_environment,
    launcher_arguments,
    server_environment,
    spec_hash,
)
from workflows.contracts.names import ProjectRef, project_subpath, user_subpath

_HOST: Final = "127.0.0.1"
_PORTS: Final = range(20_000, 30_000)
_START_S: Final = 20.0
_STOPPED_S: Final = 5.0
_WAIT_POLL_S: Final = 0.1
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LocalSettings:
    """Settings of the driver.

    `toolchain`: folder with the templates' `node_modules` and a `bin` with `node`, `npm`, `python3`. `uid`: whom
    servers run as when this process is root, None: 1000.
    """

    instance: str
    data_dir: Path
    projects_root: Path
    preview_domain: str = "localhost"
    toolchain: Path | None = None
    uid: int | None = None


class LocalRuntime(GuestRuntime):
    """`Runtime` by processes of this machine."""

    name = "local"

    def __init__(self, settings: LocalSettings) -> None:
        self._settings = settings
        self._run = settings.data_dir.resolve() / "run" / "dev-servers"
        self._files_owner = owner_of_files(settings.uid)
        self._sandboxed: bool | None = None
        super().__init__(Guest(self, root=self._root, terminals=self._terminals))

    @property
    def sandboxed(self) -> bool:
        """Whether bubblewrap works here; tried once."""
        if self._sandboxed is None:
            self._sandboxed = bwrap_works()
            _log.info("local dev servers", isolation=self.isolation)
        return self._sandboxed

    @property
    def isolation(self) -> str:
        """What keeps dev servers from this machine, for those who run it."""
        if self.sandboxed:
            return "partial: bubblewrap sandboxes that share the host's network, for a single trusted user"
        who = "root" if self._owner[0] == 0 else "a user"
        return f"none: plain processes of {who} of this machine, for a single trusted user"

    @property
    def _owner(self) -> tuple[int, int]:
        """Whom dev servers run as. A plain process can be nobody special only where such a one reaches Python."""
        return self._files_owner if self.sandboxed or reachable_by_others(Path(_python())) else (0, 0)

    # --- one server per project ---

    async def launch(self, spec: DevServerSpec, *, on_stage: StageListener) -> ContainerStatus:
        """See `Runtime.launch`."""
        check_environment(spec.environment)
        folder = self._folder(spec.ref)
        digest = spec_hash(spec)
        async with folder.changing():
            record = folder.record()
            status = folder.status()
            right = record is not None and record.spec_hash == digest
            if status is not None and status.address is not None and right:
                return status
            if not self._project(spec.ref).is_dir():
                raise SpecInvalidError("The project's folder isn't there on this machine.")
            if record is not None and not right:
                await on_stage("creating")
                await self._end(folder, 0.5)
                shutil.rmtree(folder.path, ignore_errors=True)
            elif record is None:
                await on_stage("creating")
            await on_stage("starting")
            port = self._choose_port(spec.ref, record.port if record is not None else None)
            identifier = record.id if record is not None and right else f"local-{secrets.token_hex(8)}"
            fresh = Record(spec.ref.user_id, spec.ref.project_id, identifier, digest, port, time.time())
            await self._start(folder, spec, fresh)
        return self._required(folder)

    async def stop(self, ref: ProjectRef, *, grace_s: float = 5.0) -> None:
        """See `Runtime.stop`."""
        folder = self._folder(ref)
        if folder.alive():
            async with folder.changing():
                await self._end(folder, grace_s)

    async def remove(self, ref: ProjectRef) -> None:
        """See `Runtime.remove`."""
        folder = self._folder(ref)
        if not folder.path.exists():
            return
        async with folder.changing():
            await self._end(folder, 0.5)
            await asyncio.to_thread(shutil.rmtree, folder.path, ignore_errors=True)
            remove_groups(self._group(ref))
            if not self.sandboxed:
                await asyncio.to_thread(shutil.rmtree, self._terminals(ref), ignore_errors=True)

    async def remove_user(self, user_id: int) -> None:
        """See `Runtime.remove_user`: users share nothing here."""

    async def inspect(self, ref: ProjectRef) -> ContainerStatus | None:
        """See `Runtime.inspect`."""
        return self._folder(ref).status()

    async def discover(self) -> list[ContainerStatus]:
        """See `Runtime.discover`."""
        if not self._run.is_dir():
            return []
        found = (ServerFolder(path).status() for path in sorted(self._run.iterdir()) if path.is_dir())
        return [status for status in found if status is not None]

    async def wait(self, ref: ProjectRef) -> ContainerStatus | None:
        """See `Runtime.wait`."""
        folder = self._folder(ref)
        while folder.alive():  # noqa: ASYNC110 -- another process holds that lock
            await asyncio.sleep(_WAIT_POLL_S)
        return folder.status()

    async def probe(self, ref: ProjectRef, port: int) -> bool:  # noqa: ARG002 -- here it listens where we told it to
        """See `Runtime.probe`."""
        status = await self.inspect(ref)
        return status is not None and status.address is not None and await answers_soon(*status.address)

    async def logs(self, ref: ProjectRef, *, tail: int = 200, follow: bool = False) -> AsyncIterator[bytes]:
        """See `Runtime.logs`."""
        folder = self._folder(ref)
        if folder.record() is None:
            raise ContainerMissingError("This project was never started.")
        async for piece in read_log(folder.path, tail=tail, follow=follow, alive=folder.alive):
            yield piece

    # --- beside the server: see GuestRuntime ---

    @asynccontextmanager
    async def open_channel(self, ref: ProjectRef) -> AsyncIterator[LocalChannel]:
        """A process beside the project's server; for `Guest`."""
        folder = self._folder(ref)
        if folder.record() is None:
            raise ContainerMissingError("This project was never started; start it first.")
        if not folder.alive():
            raise NotRunningError("This project's dev server doesn't run; start it first.")
        async with open_process(folder.box, [_python(), *PROGRAM], self._owner) as channel:
            yield channel

    async def ready(self) -> None:
        """See `Runtime.ready`."""
        await asyncio.to_thread(lambda: self.sandboxed)

    async def close(self) -> None:
        """See `Runtime.close`."""
        await self._guest.settle()

    # --- this machine's part ---

    async def _start(self, folder: ServerFolder, spec: DevServerSpec, record: Record) -> None:
        """Start the supervisor and return when the agent listens; what fails leaves nothing."""
        sandboxed = await asyncio.to_thread(lambda: self.sandboxed)
        self._make_folders(folder, spec.ref)
        folder.write(record)
        groups = make_groups(self._group(spec.ref), spec.limits)
        call = message("supervisor", "main", self._supervision(folder, spec, record, groups, sandboxed=sandboxed))
        started = False
        try:
            await _run_detached(call, record.id)
            deadline = time.monotonic() + _START_S
            while folder.alive() and not (folder.box / "socket").exists():
                if time.monotonic() > deadline:
                    raise RuntimeUnavailableError("The dev server's sandbox doesn't come up.")
                await asyncio.sleep(0.01)
            started = True
        finally:
            if not started:
                folder.kill()
                shutil.rmtree(folder.path, ignore_errors=True)

    def _supervision(
        self, folder: ServerFolder, spec: DevServerSpec, record: Record, groups: Groups, *, sandboxed: bool
    ) -> dict[str, Any]:
        project, cache = self._project(spec.ref), self._cache(spec.ref.user_id)
        places = Places(project, cache, folder.box, self._settings.toolchain)
        seen = Places(Path(PROJECT_FOLDER), Path(CACHE_FOLDER), Path(BOX), Path(WORKSPACE)) if sandboxed else places
        environment = self._environment(spec, record, seen, sandboxed=sandboxed)
        agent = {
            "uid": self._owner[0],
            "gid": self._owner[1],
            "open_files": spec.limits.open_files,
            "processes": None if groups.bounded else _processes_of(self._owner[0]) + spec.limits.pids,
            "box": str(seen.box),
            "folder": str(seen.project),
            "command": ["sh", "-c", LAUNCHER, *launcher_arguments(spec)],
            "environment": environment,
        }
        sandbox = bwrap_arguments(places) if sandboxed else []
        return {
            "folder": str(folder.path),
            "argv": [*sandbox, _python(), *PROGRAM],
            "environment": {"PATH": os.environ.get("PATH", os.defpath)},
            "message": message("agent", "main", agent).decode(),
            "groups": [str(path) for path in groups.folders],
            "memory_events": str(groups.memory_events) if groups.memory_events else None,
            "mark": record.id,
        }

    def _environment(self, spec: DevServerSpec, record: Record, seen: Places, *, sandboxed: bool) -> dict[str, str]:
        home = HOME_FOLDER if sandboxed else str(seen.box / "home")
        around = Surroundings(_HOST, record.port, self._settings.preview_domain, home, str(seen.cache))
        path = [f"{seen.project}/node_modules/.bin", f"{seen.project}/.venv/bin"]
        if seen.toolchain is not None:
            path += [f"{seen.toolchain}/node_modules/.bin", f"{seen.toolchain}/bin"]
        path += [f"{sys.prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin"]
        toolchain = {} if seen.toolchain is None else {"STUDIO_TOOLCHAIN": str(seen.toolchain)}
        base = {"PATH": ":".join(path), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        base |= certificates() | toolchain
        return base | server_environment(spec, around) | {MARK: record.id}

    def _make_folders(self, folder: ServerFolder, ref: ProjectRef) -> None:
        for path in (folder.box, folder.box / "home", self._cache(ref.user_id)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(path, *self._files_owner)
        for name in ("socket", "socket.new"):
            (folder.box / name).unlink(missing_ok=True)
        modules = self._settings.projects_root / "node_modules"
        toolchain = self._settings.toolchain
        if not self.sandboxed and toolchain is not None and not modules.is_symlink():
            modules.symlink_to(toolchain / "node_modules")  # Node climbs to it from a project, as in the image

    def _choose_port(self, ref: ProjectRef, last: int | None) -> int:
        """The last one, or another that nobody listens on and no other dev server was given."""
        taken = set()
        for path in self._run.iterdir() if self._run.is_dir() else ():
            record = ServerFolder(path).record() if path.is_dir() else None
            if record is not None and record.ref != ref:
                taken.add(record.port)
        count = len(_PORTS)
        candidates = [] if last is None else [last]
        candidates += [_PORTS[(ref.project_id * 7 + step) % count] for step in range(count)]
        for port in candidates:
            if port not in taken and _is_free(port):
                return port
        raise ResourcesExhaustedError("No port is free for another dev server.")

    async def _end(self, folder: ServerFolder, grace_s: float) -> None:
        if not folder.alive():
            return
        await ask_to_stop(folder.box, grace_s)
        if not await folder.ended(grace_s + 1):
            folder.kill()
            if not await folder.ended(_STOPPED_S):
                raise RuntimeUnavailableError("The dev server doesn't end.")

    def _required(self, folder: ServerFolder) -> ContainerStatus:
        status = folder.status()
        if status is None:
            raise RuntimeUnavailableError("The dev server's state is gone.")
        return status

    def _folder(self, ref: ProjectRef) -> ServerFolder:
        return ServerFolder(self._run / f"user{ref.user_id}-project{ref.project_id}")

    def _project(self, ref: ProjectRef) -> Path:
        return self._settings.projects_root.resolve() / project_subpath(ref)

    def _cache(self, user_id: int) -> Path:
        return self._settings.projects_root.resolve() / user_subpath(user_id) / "cache"

    def _group(self, ref: ProjectRef) -> str:
        return f"{self._settings.instance}-{ref.project_id}"

    def _root(self, ref: ProjectRef) -> str:
        return PROJECT_FOLDER if self.sandboxed else str(self._project(ref))

    def _terminals(self, ref: ProjectRef) -> str:
        """Short, for a socket's address: below /tmp, which is the sandbox's own where there is one."""
        if self.sandboxed:
            return "/tmp/.studio/terminals"  # noqa: S108 -- the sandbox's own
        return f"/tmp/studio-{os.geteuid()}-{self._settings.instance}-{ref.project_id}"  # noqa: S108 -- made 0700


async def _run_detached(call: bytes, mark: str) -> None:
    """Start a supervisor that outlives this process."""
    process = await asyncio.create_subprocess_exec(
        _python(),
        *PROGRAM,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={"PATH": os.environ.get("PATH", os.defpath), "STUDIO_SUPERVISOR": mark},
    )
    try:
        async with asyncio.timeout(_START_S):
            _, errors = await process.communicate(call)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RuntimeUnavailableError("The dev server's supervisor doesn't start.") from None
    if process.returncode:
        reason = errors.decode(errors="replace").strip()[-300:]
        raise RuntimeUnavailableError(f"The dev server's supervisor failed: {reason or process.returncode}")


def _python() -> str:
    """This interpreter itself, not the environment's link to it: it runs isolated, with its own library only."""
    return str(Path(sys.executable).resolve())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _processes_of(uid: int) -> int:
    """How many a user has already: the kernel counts them all against one bound."""
    return sum(1 for process in psutil.process_iter() if _uid(process) == uid)


def _uid(process: psutil.Process) -> int | None:
    try:
        return process.uids().real
    except psutil.Error:
        return None
