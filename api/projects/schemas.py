"""A project as clients see and write it."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.dev_servers.schemas import DevServerOut
from workflows.contracts.projects import ProjectState

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Description = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]
GitRef = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@+-]*$")]
GitUrl = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[\x21-\x7e]+$")]

DEFAULT_TEMPLATE = "vite-react"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProjectIn(_Body):
    """What to make a project from: a template, or a git repository over https."""

    name: Name
    description: Description = ""
    template: Annotated[str, StringConstraints(max_length=100)] | None = Field(
        default=None, description=f"One of `GET /api/templates`; `{DEFAULT_TEMPLATE}` when there is no `git_url`."
    )
    git_url: GitUrl | None = Field(default=None, description="An https address of a public repository.")
    git_ref: GitRef | None = Field(default=None, description="Branch or tag; the repository's default without it.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.template is not None and self.git_url is not None:
            raise ValueError("give either template or git_url, not both")
        if self.git_ref is not None and self.git_url is None:
            raise ValueError("git_ref needs a git_url")
        return self


class ProjectPatch(_Body):
    """What to change; what isn't given stays."""

    name: Name | None = None
    description: Description | None = None


class ForkIn(_Body):
    """How the fork is called; the source's name with `(fork)` behind it by default."""

    name: Name | None = None


class ProjectOut(BaseModel):
    """A project and its dev server. `state_reason` tells why a provision failed."""

    id: int
    name: str
    description: str
    template: str | None
    git_url: str | None
    state: ProjectState
    state_reason: str | None
    dev_server: DevServerOut
    created_at: datetime
    updated_at: datetime
