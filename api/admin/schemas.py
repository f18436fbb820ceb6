"""What operators see."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.fields import RequestBody, Usd
from api.users.schemas import UserOut
from workflows.contracts.agent_tasks import TaskMode, TaskState
from workflows.contracts.dev_servers import DevServerState
from workflows.contracts.projects import ProjectState

_MOST_USD = 1_000_000


class AdminUser(UserOut):
    """A user; one who isn't active is refused everywhere. `monthly_budget_usd` null: the default.

    `is_leaving`: they are being deleted.
    """

    is_active: bool
    is_leaving: bool
    monthly_budget_usd: Usd | None


class AdminUserPatch(RequestBody):
    """What to change; what isn't given stays. `monthly_budget_usd`: null gives the default back."""

    is_active: bool | None = None
    is_superuser: bool | None = None
    monthly_budget_usd: Annotated[Decimal, Field(ge=0, le=_MOST_USD)] | None = None


class AdminProject(BaseModel):
    """A project of any user."""

    model_config = ConfigDict(from_attributes=True)

    project_id: int
    user_id: int
    name: str
    state: ProjectState
    state_reason: str | None
    created_at: datetime


class AdminDevServer(BaseModel):
    """A dev server. `generation` over `observed_generation` for long: its command was lost, `Reconcile` repeats it."""

    model_config = ConfigDict(from_attributes=True)

    project_id: int
    user_id: int
    dev_server_state: DevServerState
    dev_server_reason: str | None
    dev_server_since: datetime
    last_activity_at: datetime | None
    generation: int
    observed_generation: int


class AdminTask(BaseModel):
    """A task of any user. `cost_usd`: so far; `cancel_requested_at` long before `ended_at`: its worker may be gone."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_id: int
    project_id: int
    chat_id: UUID
    mode: TaskMode
    model: str
    state: TaskState
    state_reason: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: Usd
    cancel_requested_at: datetime | None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
