"""Projects: states, and what `ProvisionProject` and `DeleteProject` are told and ask for.

Payloads carry ids only: names, sources and contents stay in Postgres and on disk.
"""

from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict
from temporalio import activity

from workflows.contracts.names import ProjectRef


class ProjectState(StrEnum):
    """`provisioning` → `ready` or `failed`; `deleting` from each of them, and to nowhere."""

    PROVISIONING = "provisioning"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class ProvisionStage(StrEnum):
    """Progress of a provision, in order."""

    CREATING_FILES = "creating_files"
    FINISHING = "finishing"


class ProjectInput(BaseModel):
    """Which project, and for which operation. Input of `ProvisionProject` and `DeleteProject`."""

    model_config = ConfigDict(frozen=True)

    user_id: int
    project_id: int
    operation_id: str

    @property
    def ref(self) -> ProjectRef:
        """The pair from which names follow."""
        return ProjectRef(self.user_id, self.project_id)


class ProvisionFailure(BaseModel):
    """Why a provision ended without a project. `detail` is shown to its owner."""

    model_config = ConfigDict(frozen=True)

    project: ProjectInput
    code: str
    detail: str


class ProjectActivities(Protocol):
    """The effects of a project's life. Each may run twice, at once or late, and gives the same end state."""

    @activity.defn(name="create_project_files")
    async def create_project_files(self, project: ProjectInput) -> None:
        """Bring the source (template, git, fork) into the project's folder: complete, or not at all."""

    @activity.defn(name="finish_provision")
    async def finish_provision(self, project: ProjectInput) -> None:
        """Row to `ready`, its event, the operation to `succeeded`, in one commit."""

    @activity.defn(name="fail_provision")
    async def fail_provision(self, failure: ProvisionFailure) -> None:
        """Remove what was made; row to `failed` with the reason, its event, the operation, in one commit."""

    @activity.defn(name="await_workflows_closed")
    async def await_workflows_closed(self, project: ProjectInput) -> None:
        """Have the project's tasks end; return when neither they nor its other workflows run any more."""

    @activity.defn(name="remove_project_container")
    async def remove_project_container(self, project: ProjectInput) -> None:
        """Remove the project's container and its network when it was the user's last; gone already is success."""

    @activity.defn(name="remove_project_files")
    async def remove_project_files(self, project: ProjectInput) -> None:
        """Remove the project's folder; gone already is success."""

    @activity.defn(name="remove_project_rows")
    async def remove_project_rows(self, project: ProjectInput) -> None:
        """Delete the rows and end the operation, in one commit."""
