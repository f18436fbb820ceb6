"""What the AI SDK's clients send. Their users add fields of their own, so unknown ones are ignored here."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

from api.agent.schemas import DEFAULT_STEPS, Budget, ClientMessageId, ModelName, Prompt, Steps, ToolName
from api.fields import STORABLE
from workflows.contracts.agent_tasks import ApprovalMode, OnBusy, TaskMode

_MAX_MESSAGES = 10_000


class UIMessage(BaseModel):
    """A message as the client has it. Of all those that it sends, only the last one is looked at."""

    id: str | None = None
    role: str
    parts: list[Any] = []


class UIRequest(BaseModel):
    """The body of `DefaultChatTransport`, and the fields that its `body` option may add for us.

    `tools`, `approval_mode`: of `agent` mode, as for `POST /api/agent/tasks`. A `regenerate-message` takes all but
    `messageId` from the task that it tries again.
    """

    messages: Annotated[list[UIMessage], Field(max_length=_MAX_MESSAGES)] = []
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    message_id: str | None = Field(default=None, alias="messageId")
    mode: TaskMode = TaskMode.CHAT
    model: ModelName | None = Field(default=None, description="One of `GET /api/models`; the default model without it.")
    tools: Annotated[list[ToolName], Field(max_length=100)] | None = Field(
        default=None, description="Only these tools; all without it."
    )
    approval_mode: ApprovalMode = ApprovalMode.AUTO
    max_steps: Steps = DEFAULT_STEPS
    budget_usd: Budget | None = Field(default=None, description="USD; the user's own budget alone without it.")
    on_busy: OnBusy = OnBusy.REJECT


class Submission(BaseModel):
    """A user's message, by what counts of it. `id`: the client's own name for it."""

    id: ClientMessageId | None
    content: Prompt


class ApprovalReply(BaseModel):
    """An answer by the SDK's `addToolApprovalResponse`."""

    id: UUID
    approved: bool
    reason: Annotated[str, StringConstraints(max_length=10_000), STORABLE] | None = None
