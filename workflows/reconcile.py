"""`Reconcile`: by schedule, compares rows, running workflows and the runtime's labels, and mends what differs."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows import policies
    from workflows.activity_calls import perform
    from workflows.contracts.reconcile import ReconcileActivities, ReconcileInput, ReconcileReport


@workflow.defn(name="Reconcile", failure_exception_types=policies.PROGRAMMING_ERRORS)
class Reconcile:
    """One pass. What it can't mend now, the schedule's next pass tries again."""

    @workflow.run
    async def run(self, request: ReconcileInput) -> ReconcileReport:
        """Returns what was found; lost work first, so that a container isn't swept that is about to be adopted."""
        lost = await perform(ReconcileActivities.restart_lost_work, request, policies.SWEEP, "restart lost work")
        swept = await perform(ReconcileActivities.sweep_containers, request, policies.SWEEP, "sweep containers")
        pruned = await perform(ReconcileActivities.prune_rows, request, policies.SWEEP, "prune rows")
        return lost.model_copy(
            update={"orphans": swept.orphans, "strays": swept.strays, "expired_rows": pruned.expired_rows}
        )
