"""`ProvisionProject`: from row to ready, or a failure with a reason and nothing left behind."""

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import policies
    from workflows.activity_calls import perform
    from workflows.contracts.names import dev_server_id
    from workflows.contracts.projects import ProjectActivities, ProjectInput, ProvisionFailure, ProvisionStage
    from workflows.failures import cause_of


@workflow.defn(name="ProvisionProject", failure_exception_types=policies.PROGRAMMING_ERRORS)
class ProvisionProject:
    """Bring the project's files into being and say so.

    Ends well when the project is ready or its failure is written down; is cancelled by a deletion, which cleans up.
    """

    def __init__(self) -> None:
        self._stage = ProvisionStage.CREATING_FILES

    @workflow.query
    def stage(self) -> str:
        """How far it is, for operators."""
        return self._stage

    @workflow.run
    async def run(self, project: ProjectInput) -> str:
        """Returns `ready`, or the code of the failure."""
        try:
            outcome = await self._provision(project)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            outcome = await self._fail(project, error)
        await self._tell_dev_server(project)
        return outcome

    async def _provision(self, project: ProjectInput) -> str:
        await perform(ProjectActivities.create_project_files, project, policies.FILES, "create files")
        self._stage = ProvisionStage.FINISHING
        await perform(ProjectActivities.finish_provision, project, policies.ROW, "mark ready")
        return "ready"

    async def _fail(self, project: ProjectInput, error: ActivityError) -> str:
        code, detail = cause_of(error)
        failure = ProvisionFailure(project=project, code=code, detail=detail)
        await perform(ProjectActivities.fail_provision, failure, policies.COMPENSATION, f"fail: {code}")
        return code

    async def _tell_dev_server(self, project: ProjectInput) -> None:
        """A start that came early waits for this; without one there is nobody to tell."""
        server = workflow.get_external_workflow_handle(dev_server_id(project.project_id))
        try:
            await server.signal("project_settled")
        except FailureError:
            workflow.logger.debug("no dev server waits for the provision")
