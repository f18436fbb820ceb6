"""The durable event log's vocabulary: one append-only log per project, numbered gapless from 1.

What a client sees of an event is exactly `Event`, as JSON (API.md, "Events").
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class EventType(StrEnum):
    """Every type that the log can hold; the value is the SSE `event:` field."""

    PROJECT_STATE = "project.state"
    """data: `{state, reason, stage}`."""
    DEV_SERVER_STATE = "dev_server.state"
    """data: `{state, reason, exit_code, log_tail}`."""
    DEV_SERVER_STAGE = "dev_server.stage"
    """A start's progress; data: `{stage}`, one of `DevServerStage`."""
    FILE_CHANGED = "file.changed"
    """data: `{path, op, etag, by}`; op: `created | modified | deleted`; by: `user | agent | container`."""
    TASK_STATE = "task.state"
    """data: `{state, reason, detail, chat_id, mode}`."""
    STEP_STARTED = "step.started"
    """A model call begins; data: `{step}`."""
    TEXT_DELTA = "text.delta"
    """A piece of the model's text; data: `{step, text}`."""
    STEP_RESET = "step.reset"
    """A model call is made again: drop the step's text so far; data: `{step}`."""
    TOOL_CALL = "tool.call"
    """A tool call has been stored, or its state has changed; data: `{step, call, name, arguments, state}`."""
    TOOL_OUTPUT = "tool.output"
    """Output of a running call; data: `{call, stream, text, end}`; end: bytes of its output up to here."""
    TOOL_RESULT = "tool.result"
    """data: `{step, call, name, state, result, exit_code}`; result: at most its first 4,000 characters."""
    APPROVAL_REQUESTED = "approval.requested"
    """data: `{approval_id, kind, step, call, name, arguments, expires_at}`; a plan has no call."""
    APPROVAL_RESOLVED = "approval.resolved"
    """data: `{approval_id, call, decision, state, note}`; decision None when it has expired."""
    MESSAGE_FINAL = "message.final"
    """A message of the chat is whole; data: the message, and `step` for an assistant's."""
    USAGE = "usage"
    """A model call was settled; data: `{step, input_tokens, output_tokens, cost_usd, total_cost_usd}`."""


class EventFence(BaseModel):
    """Who may write on a subject of a task (a step, a tool call): whoever claimed it last (storage/event_fences.py).

    An attempt that was thought dead holds an older token, and what it still says is dropped.
    """

    model_config = ConfigDict(frozen=True)

    subject: str
    token: str


class NewEvent(BaseModel):
    """An event that has no number yet. `fence`: only written while that claim stands; needs a `task_id`."""

    model_config = ConfigDict(frozen=True)

    project_id: int
    type: EventType
    data: dict[str, Any]
    task_id: str | None = None
    fence: EventFence | None = None


class Event(BaseModel):
    """An event as stored and as streamed. `seq`: gapless per project from 1, in commit order; `at`: UTC."""

    model_config = ConfigDict(frozen=True)

    seq: int
    type: str
    project_id: int
    task_id: str | None = None
    at: datetime
    data: dict[str, Any]
