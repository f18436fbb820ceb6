"""Dev servers: states, commands, and what the `DevServer` entity asks for.

Commands are ordered by the database: the API raises `dev_servers.generation` under the row's lock, commits, then
signals the workflow. The highest generation wins, whatever order signals arrive in; a lost signal is sent again
by `Reconcile`, because the row still says that its generation was never observed.
"""

from datetime import datetime
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict
from temporalio import activity

from workflows.contracts.names import ProjectRef


class DevServerState(StrEnum):
    """`running` is said only after an HTTP request to the server inside has succeeded."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


class DevServerStage(StrEnum):
    """A start's progress, in order."""

    PULLING = "pulling"
    CREATING = "creating"
    STARTING = "starting"
    PROBING = "probing"


class DevServerAction(StrEnum):
    """What a command asks for."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"


class LeaseKind(StrEnum):
    """Who may keep a server awake. A server with an unexpired lease is never stopped for idleness."""

    START = "start"
    PREVIEW = "preview"
    FILES = "files"
    EXEC = "exec"
    TERMINAL = "terminal"
    TASK = "task"
    APPROVAL = "approval"
    PIN = "pin"


class DevServerCommand(BaseModel):
    """One accepted command, as signalled (`command`)."""

    model_config = ConfigDict(frozen=True)

    generation: int
    action: DevServerAction


class DevServerInput(BaseModel):
    """Which project's server. The last two fields are carried over continue-as-new.

    `command`: the newest known command; `running`: that command's start has succeeded already.
    `start_timeout_s`, `idle_grace_s`: settings, fixed for this run.
    """

    model_config = ConfigDict(frozen=True)

    user_id: int
    project_id: int
    start_timeout_s: float = 600.0
    idle_grace_s: float = 60.0
    command: DevServerCommand | None = None
    running: bool = False

    @property
    def ref(self) -> ProjectRef:
        """The pair from which names follow."""
        return ProjectRef(self.user_id, self.project_id)


class DevServerStep(BaseModel):
    """Input of each effect: which project, under which command's generation."""

    model_config = ConfigDict(frozen=True)

    user_id: int
    project_id: int
    generation: int

    @property
    def ref(self) -> ProjectRef:
        """The pair from which names follow."""
        return ProjectRef(self.user_id, self.project_id)


class StateChange(BaseModel):
    """A transition to write down: row, event and ended operations in one commit.

    Skipped when the row's generation is newer than `step.generation`: a later command speaks for the row then.
    `code` is the error code of the operations that failed; None elsewhere. `with_log`: the container's last lines
    go into the row; they are read by the activity, for what a server prints has no place in a payload.
    """

    model_config = ConfigDict(frozen=True)

    step: DevServerStep
    state: DevServerState
    reason: str | None = None
    code: str | None = None
    exit_code: int | None = None
    with_log: bool = False


class ServerExit(BaseModel):
    """How a dev server ended by itself. `exit_code` is None when the container vanished."""

    model_config = ConfigDict(frozen=True)

    exit_code: int | None
    out_of_memory: bool = False


class IdleVerdict(BaseModel):
    """What the leases say. `expires_at`: when the last one ends, None when a lease without an end is held."""

    model_config = ConfigDict(frozen=True)

    now: datetime
    expires_at: datetime | None
    pinned: bool


PROVISIONING = "provisioning"
"""Error type of a launch that came before the project has files."""
SUPERSEDED = "superseded"
"""Error type of a launch that is no longer wanted: whatever it would leave or say is a later command's to see to."""


class DevServerActivities(Protocol):
    """The effects on one dev server. Each may run twice, at once or late, and gives the same end state."""

    @activity.defn(name="launch_dev_server")
    async def launch_dev_server(self, step: DevServerStep) -> None:
        """Have exactly one right container running: adopt, start, replace or create. Writes the stages.

        Fails before any effect with `superseded` (a newer stop, or a deletion), `project_failed`, or `provisioning`.
        """

    @activity.defn(name="probe_dev_server")
    async def probe_dev_server(self, step: DevServerStep) -> ServerExit | None:
        """Return None after the first successful HTTP request to the server, or how it ended instead."""

    @activity.defn(name="watch_dev_server")
    async def watch_dev_server(self, step: DevServerStep) -> ServerExit:
        """Return when the server has ended; meanwhile report file changes made from inside it."""

    @activity.defn(name="stop_dev_server")
    async def stop_dev_server(self, step: DevServerStep) -> None:
        """Stop the container and keep what a start needs; not there is success."""

    @activity.defn(name="retire_dev_server")
    async def retire_dev_server(self, step: DevServerStep) -> None:
        """Remove the container; not there is success."""

    @activity.defn(name="record_dev_server")
    async def record_dev_server(self, change: StateChange) -> bool:
        """Write the transition down; False when a newer command has superseded it."""

    @activity.defn(name="read_idleness")
    async def read_idleness(self, step: DevServerStep) -> IdleVerdict:
        """What the leases say now."""
