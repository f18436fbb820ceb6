"""`DeleteProject`: a saga in the order that loses nothing: stop, container, files, rows."""

from temporalio import workflow
from temporalio.exceptions import FailureError

with workflow.unsafe.imports_passed_through():
    from workflows import policies
    from workflows.activity_calls import perform
    from workflows.contracts.names import dev_server_id, provision_project_id
    from workflows.contracts.projects import ProjectActivities, ProjectInput


@workflow.defn(name="DeleteProject", failure_exception_types=policies.PROGRAMMING_ERRORS)
class DeleteProject:
    """Remove all of a project. The row says `deleting` before this starts, so nothing new begins meanwhile.

    Each step is repeated until it has succeeded: rows go last, so that a step that failed can be found again.
    """

    def __init__(self) -> None:
        self._stage = "stopping"

    @workflow.query
    def stage(self) -> str:
        """How far it is, for operators."""
        return self._stage

    @workflow.run
    async def run(self, project: ProjectInput) -> None:
        """Returns when nothing of the project is left."""
        await self._end_other_workflows(project)
        for stage, step in (
            ("removing_container", ProjectActivities.remove_project_container),
            ("removing_files", ProjectActivities.remove_project_files),
            ("removing_rows", ProjectActivities.remove_project_rows),
        ):
            self._stage = stage
            await perform(step, project, policies.COMPENSATION, stage)

    async def _end_other_workflows(self, project: ProjectInput) -> None:
        """Each workflow ends in its own way: the writer of the container removes nothing while another writes."""
        provision = workflow.get_external_workflow_handle(provision_project_id(project.project_id))
        server = workflow.get_external_workflow_handle(dev_server_id(project.project_id))
        for request in (provision.cancel(), server.signal("retire")):
            try:
                await request
            except FailureError:
                workflow.logger.debug("not running")
        await perform(ProjectActivities.await_workflows_closed, project, policies.CLOSING, "wait for its workflows")
