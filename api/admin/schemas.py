"""What operators see."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from api.fields import RequestBody
from api.users.schemas import UserOut
from workflows.contracts.dev_servers import DevServerState
from workflows.contracts.projects import ProjectState


class AdminUser(UserOut):
    """A user; one who isn't active is refused everywhere."""

    is_active: bool


class AdminUserPatch(RequestBody):
    """What to change; what isn't given stays."""

    is_active: bool | None = None
    is_superuser: bool | None = None


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
