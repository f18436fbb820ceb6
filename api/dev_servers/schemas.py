"""A dev server as clients see it."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from api.services import ApiConfig
from storage.project_views import ProjectView
from storage.projects import ProjectRecord
from workflows.contracts import names
from workflows.contracts.dev_servers import DevServerState


class LeaseOut(BaseModel):
    """Who keeps the server awake. `expires_at` null: until it is given back."""

    model_config = ConfigDict(from_attributes=True)

    kind: str
    holder: str
    expires_at: datetime | None


class DevServerOut(BaseModel):
    """`running` is said only after an HTTP request to the server inside has succeeded."""

    state: DevServerState
    reason: str | None = Field(description="Why it failed or was stopped, or that it is about to sleep.")
    url: str = Field(description="Where the preview is reached; its owner gets in by a preview token.")
    exit_code: int | None
    log_tail: str | None
    since: datetime
    last_activity_at: datetime | None
    leases: list[LeaseOut]


def preview_url(config: ApiConfig, project: ProjectRecord) -> str:
    """Address of the project's preview as this installation's users see it."""
    return names.preview_url(project.ref, config.preview_scheme, config.preview_domain, config.preview_port)


def present_dev_server(config: ApiConfig, view: ProjectView) -> DevServerOut:
    """The dev server of a project as clients see it."""
    server = view.server
    return DevServerOut(
        state=DevServerState(server.state),
        reason=server.reason,
        url=preview_url(config, view.project),
        exit_code=server.exit_code,
        log_tail=server.log_tail,
        since=server.since,
        last_activity_at=server.last_activity_at,
        leases=[LeaseOut.model_validate(lease) for lease in view.leases],
    )
