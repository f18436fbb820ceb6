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


class NewEvent(BaseModel):
    """An event that has no number yet."""

    model_config = ConfigDict(frozen=True)

    project_id: int
    type: EventType
    data: dict[str, Any]
    task_id: str | None = None


class Event(BaseModel):
    """An event as stored and as streamed. `seq`: gapless per project from 1, in commit order; `at`: UTC."""

    model_config = ConfigDict(frozen=True)

    seq: int
    type: str
    project_id: int
    task_id: str | None = None
    at: datetime
    data: dict[str, Any]
