"""`OffboardUser`: a saga in the order that loses nothing: projects, the key at the proxy, rows."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import policies
    from workflows.activity_calls import perform
    from workflows.contracts.offboarding import OffboardingActivities, OffboardInput
    from workflows.contracts.onboarding import OnboardingActivities, OnboardInput


@workflow.defn(name="OffboardUser", failure_exception_types=policies.PROGRAMMING_ERRORS)
class OffboardUser:
    """Remove all of a user. The row is shut out and says `leaving` before this starts, so nothing new begins meanwhile.

    Each step is repeated until it has succeeded: the row goes last, so that a step that failed can be found again.
    """

    def __init__(self) -> None:
        self._stage = "deleting_projects"

    @workflow.query
    def stage(self) -> str:
        """How far it is, for operators."""
        return self._stage

    @workflow.run
    async def run(self, user: OffboardInput) -> None:
        """Returns when nothing of the user is left."""
        removed = False
        while not removed:
            self._stage = "deleting_projects"
            await perform(OffboardingActivities.delete_user_projects, user, policies.COMPENSATION, self._stage)
            self._stage = "revoking_key"
            shut_out = OnboardInput(user_id=user.user_id)
            await perform(OnboardingActivities.align_model_key, shut_out, policies.MODEL_KEY, self._stage)
            self._stage = "removing_rows"
            removed = await perform(OffboardingActivities.remove_user, user, policies.COMPENSATION, self._stage)
