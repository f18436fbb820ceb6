"""An operation as clients see it."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from workflows.contracts.operations import OperationKind, OperationState


class OperationErrorOut(BaseModel):
    """Why it failed; `retryable`: the same request may work later."""

    code: str
    detail: str
    retryable: bool


class OperationOut(BaseModel):
    """Work that a POST began. `stage`: how far it is, null before the first."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: OperationKind
    project_id: int
    state: OperationState
    stage: str | None
    error: OperationErrorOut | None
    started_at: datetime
    ended_at: datetime | None
