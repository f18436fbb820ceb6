"""A chat as clients see and write it."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.agent.schemas import ClientMessageId, MessageOut, ModelName, Prompt, TaskOut
from api.fields import STORABLE, RequestBody
from workflows.contracts.agent_tasks import OnBusy

Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), STORABLE]


class ChatIn(RequestBody):
    """Where to talk, and under which title."""

    project_id: Annotated[int, Field(ge=1, lt=2**63)]
    title: Title = "New chat"


class ChatOut(BaseModel):
    """A conversation in a project."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    project_id: int
    title: str
    created_at: datetime


class MessageIn(RequestBody):
    """What the user says. The reply is a task without tools."""

    content: Prompt
    client_message_id: ClientMessageId | None = None
    model: ModelName | None = Field(default=None, description="One of `GET /api/models`; the default model without it.")
    on_busy: OnBusy = OnBusy.REJECT


class ReplyOut(BaseModel):
    """The user's message as it was stored, and the task that replies to it."""

    message: MessageOut
    task: TaskOut
