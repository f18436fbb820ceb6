"""`OnboardUser`: a user's key at the LLM proxy is what their row says, however long the proxy is away."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import policies
    from workflows.activity_calls import perform
    from workflows.contracts.onboarding import OnboardingActivities, OnboardInput


@workflow.defn(name="OnboardUser", failure_exception_types=policies.PROGRAMMING_ERRORS)
class OnboardUser:
    """Ends when the proxy has been told all that the row said. Whoever changes the row commits, then signals `look`."""

    def __init__(self) -> None:
        self._to_look = True

    @workflow.signal
    def look(self) -> None:
        """The row has changed."""
        self._to_look = True

    @workflow.run
    async def run(self, user: OnboardInput) -> None:
        """Repeat until nothing has changed meanwhile."""
        while self._to_look:
            self._to_look = False
            await perform(OnboardingActivities.align_model_key, user, policies.MODEL_KEY, "tell the proxy of the user")
