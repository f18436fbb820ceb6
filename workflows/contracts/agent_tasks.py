"""Agent tasks and chat replies: states, and what the `AgentTask` workflow is told and asks for.

The database is the truth: prompts, transcripts, tool output, approvals and bounds are rows, payloads carry ids. Whoever
changes a row that a task waits for commits first, then signals `look`; a lost signal is sent again by `Reconcile`.
"""

from datetime import datetime
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict
from temporalio import activity

from workflows.contracts.names import ProjectRef


class TaskMode(StrEnum):
    """`chat`: one reply without tools; `agent`: model calls and tool calls until the model ends."""

    CHAT = "chat"
    AGENT = "agent"


class TaskState(StrEnum):
    """`queued` → `running` ⇄ `awaiting_approval` → one of the final three.

    `awaiting_approval` is every pause that a person ends: its reason is one of `PauseReason`.
    """

    QUEUED = "queued"
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})
ACTIVE_STATES = frozenset({TaskState.RUNNING, TaskState.AWAITING_APPROVAL})
"""A chat has at most one task in one of these."""


class PauseReason(StrEnum):
    """Why a task is `awaiting_approval`: an approval is pending, or a bound was reached and may be raised."""

    APPROVAL = "approval"
    BUDGET = "budget"
    USER_BUDGET = "user_budget"
    MAX_STEPS = "max_steps"


class ApprovalMode(StrEnum):
    """`auto`: nothing is asked. `ask`: every tool with effects. `plan`: read-only until the plan is allowed."""

    AUTO = "auto"
    ASK = "ask"
    PLAN = "plan"


class OnBusy(StrEnum):
    """What becomes of a new task while another of its chat is under way."""

    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"


class CallState(StrEnum):
    """A tool call's life. `failed`: the tool answered with an error, which the model sees."""

    AWAITING_APPROVAL = "awaiting_approval"
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DENIED = "denied"
    CANCELLED = "cancelled"


class ApprovalKind(StrEnum):
    """`tool`: one call of a tool with effects; `plan`: everything from here on."""

    TOOL = "tool"
    PLAN = "plan"


class ApprovalState(StrEnum):
    """`expired` counts as denied."""

    PENDING = "pending"
    ALLOWED = "allowed"
    DENIED = "denied"
    EXPIRED = "expired"


class Decision(StrEnum):
    """`allow_always`: this tool, for the rest of this task."""

    ALLOW = "allow"
    ALLOW_ALWAYS = "allow_always"
    DENY = "deny"


class CancelReason(StrEnum):
    """Who ended a task before its time; shown as `state_reason`."""

    USER = "cancelled_by_user"
    SUPERSEDED = "superseded"
    PROJECT_DELETED = "project_deleted"


class AgentTaskInput(BaseModel):
    """Which task. `step` is carried over continue-as-new: the step that comes next, counted from 1."""

    model_config = ConfigDict(frozen=True)

    user_id: int
    project_id: int
    task_id: str
    step: int = 1

    @property
    def ref(self) -> ProjectRef:
        """The pair from which the project's names follow."""
        return ProjectRef(self.user_id, self.project_id)


class TaskStepInput(BaseModel):
    """One step of a task."""

    model_config = ConfigDict(frozen=True)

    user_id: int
    project_id: int
    task_id: str
    step: int

    @property
    def ref(self) -> ProjectRef:
        """The pair from which the project's names follow."""
        return ProjectRef(self.user_id, self.project_id)


class ToolCallInput(BaseModel):
    """One tool call of a task."""

    model_config = ConfigDict(frozen=True)

    user_id: int
    project_id: int
    task_id: str
    call_id: str

    @property
    def ref(self) -> ProjectRef:
        """The pair from which the project's names follow."""
        return ProjectRef(self.user_id, self.project_id)


class NextMove(StrEnum):
    """What a task does next, as the rows say."""

    FINISH = "finish"
    """The model has ended its answer."""
    CALLS = "calls"
    """Its tool calls are to be run, then comes the next step."""
    WAIT = "wait"
    """A person must decide or raise a bound first."""
    QUEUE = "queue"
    """Another task of the chat is under way."""
    COMPACT = "compact"
    """The transcript is longer than the model takes."""
    STOP = "stop"
    """It was cancelled, has ended, or is gone."""


class PlannedCall(BaseModel):
    """A tool call to run. Calls of one `wave` run side by side; waves one after the other, in their order."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    wave: int


class StepOutcome(BaseModel):
    """What came of a step so far. `until`, UTC, and `reason` of a `wait`: when it ends by itself, and what for."""

    model_config = ConfigDict(frozen=True)

    move: NextMove
    calls: list[PlannedCall] = []
    until: datetime | None = None
    reason: PauseReason | None = None


class TaskEnding(BaseModel):
    """How a task is to end. `reason`: a stable word for clients; `detail`: a sentence for its owner."""

    model_config = ConfigDict(frozen=True)

    task: TaskStepInput
    state: TaskState
    reason: str | None = None
    detail: str | None = None


class TaskEnd(BaseModel):
    """Whether it ended: a completed one goes on when its user has written to it meanwhile.

    `next_task_id`: the chat's queued task whose turn it is now.
    """

    model_config = ConfigDict(frozen=True)

    ended: bool
    next_task_id: str | None = None


class AgentTaskActivities(Protocol):
    """The effects of a task. Each may run twice, at once or late, and gives the same end state."""

    @activity.defn(name="take_step")
    async def take_step(self, step: TaskStepInput) -> StepOutcome:
        """Have the step's answer, stored already or asked for now and streamed, and say what the rows want next.

        An answer that is stored is never asked for again. Called again after a wait, it says what came of that.
        """

    @activity.defn(name="compact_transcript")
    async def compact_transcript(self, step: TaskStepInput) -> StepOutcome:
        """Put a summary, for the model only, in place of the oldest steps. `compact` when done, or `wait`, `stop`."""

    @activity.defn(name="run_tool_call")
    async def run_tool_call(self, call: ToolCallInput) -> None:
        """Run a tool and store what it answers; one that has its answer already is left as it is."""

    @activity.defn(name="fail_tool_call")
    async def fail_tool_call(self, call: ToolCallInput) -> None:
        """Store that the tool could not be run, as the model will see it."""

    @activity.defn(name="stop_tool_calls")
    async def stop_tool_calls(self, step: TaskStepInput) -> None:
        """Kill what the task's commands have left running; nothing there is success."""

    @activity.defn(name="end_task")
    async def end_task(self, ending: TaskEnding) -> TaskEnd:
        """Write the end down: rows, events, leases, reservations. An ended task stays as it ended."""
