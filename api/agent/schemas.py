"""A task as clients see and write it."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from api.fields import STORABLE, RequestBody, Usd
from storage.task_views import StepView, TaskView
from workflows.contracts.agent_tasks import (
    ApprovalKind,
    ApprovalMode,
    ApprovalState,
    CallState,
    Decision,
    OnBusy,
    TaskMode,
    TaskState,
)

MAX_STEPS = 200
DEFAULT_STEPS = 100


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must say something")
    return value


Prompt = Annotated[str, StringConstraints(min_length=1, max_length=100_000), STORABLE, AfterValidator(_not_blank)]
ClientMessageId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    STORABLE,
    Field(description="The client's own name for this message: sent again, it gives the same answer."),
]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200), STORABLE]
ToolName = Annotated[str, StringConstraints(min_length=1, max_length=100), STORABLE]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Budget = Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=16, decimal_places=10, description="USD.")]


class TaskIn(RequestBody):
    """What the agent is to do. Without `chat_id` a chat is made, titled by the prompt's first line."""

    project_id: Annotated[int, Field(ge=1, lt=2**63)]
    prompt: Prompt
    chat_id: UUID | None = None
    model: ModelName | None = Field(default=None, description="One of `GET /api/models`; the default model without it.")
    tools: Annotated[list[ToolName], Field(max_length=100)] | None = Field(
        default=None, description="Only these tools; all without it."
    )
    approval_mode: ApprovalMode = ApprovalMode.AUTO
    max_steps: Steps = DEFAULT_STEPS
    budget_usd: Budget | None = Field(default=None, description="USD; the user's own budget alone without it.")
    on_busy: OnBusy = OnBusy.REJECT


class TaskPatch(RequestBody):
    """Higher bounds; what isn't given stays."""

    budget_usd: Budget | None = None
    max_steps: Steps | None = None


class SteeringIn(RequestBody):
    """A word to a running task."""

    content: Prompt
    client_message_id: ClientMessageId | None = None


class DecisionIn(RequestBody):
    """An answer to an approval. `allow_always`: this tool, for the rest of this task. The model is told the `note`."""

    decision: Decision
    note: Annotated[str, StringConstraints(max_length=10_000), STORABLE] | None = None


class MessageOut(BaseModel):
    """A message of a chat. `task_id`: the task that it began, steered or came from."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    chat_id: UUID
    seq: int
    role: str
    content: str
    task_id: UUID | None
    created_at: datetime


class UsageOut(BaseModel):
    """What model calls used and cost."""

    input_tokens: int
    output_tokens: int
    cost_usd: Usd


class ToolCallOut(BaseModel):
    """A tool call. `arguments`: an object, or the model's text when that is none."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    arguments: dict[str, Any] | str
    state: CallState
    result: str | None
    exit_code: int | None
    started_at: datetime | None
    ended_at: datetime | None


class StepOut(BaseModel):
    """A model's answer and what it called for."""

    n: int
    text: str
    tool_calls: list[ToolCallOut]
    usage: UsageOut

    @classmethod
    def of(cls, step: StepView) -> "StepOut":
        """The step as clients see it."""
        calls = [ToolCallOut.model_validate(call) for call in step.tool_calls]
        usage = UsageOut(input_tokens=step.input_tokens, output_tokens=step.output_tokens, cost_usd=step.cost_usd)
        return cls(n=step.n, text=step.text, tool_calls=calls, usage=usage)


class ApprovalOut(BaseModel):
    """A question to the task's owner. `call_id` null: about a plan. `expires_at`: denied if nobody has answered."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: ApprovalKind
    step: int
    call_id: str | None
    state: ApprovalState
    decision: Decision | None
    note: str | None
    requested_at: datetime
    expires_at: datetime
    resolved_at: datetime | None


class TaskOut(BaseModel):
    """A task. `state_reason` is a stable word, `state_detail` a sentence about it; bounds null: there is none."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    project_id: int
    chat_id: UUID
    mode: TaskMode
    prompt: str
    model: str
    tools: list[str] | None
    state: TaskState
    state_reason: str | None
    state_detail: str | None
    approval_mode: ApprovalMode
    max_steps: int
    budget_usd: Usd | None
    retry_of: UUID | None
    steps: list[StepOut]
    approvals: list[ApprovalOut]
    usage: UsageOut
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, view: TaskView) -> "TaskOut":
        """The task as clients see it."""
        task = view.task
        usage = UsageOut(input_tokens=task.input_tokens, output_tokens=task.output_tokens, cost_usd=task.cost_usd)
        return cls.model_validate(
            vars(task)
            | {
                "steps": [StepOut.of(step) for step in view.steps],
                "approvals": [ApprovalOut.model_validate(approval) for approval in view.approvals],
                "usage": usage,
            }
        )
