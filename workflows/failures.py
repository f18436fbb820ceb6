"""What a failed activity means to its workflow: one code and one sentence for the owner."""

from temporalio import exceptions
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType

TIMED_OUT = "timed_out"
WORKER_LOST = "worker_lost"


def cause_of(error: ActivityError) -> tuple[str, str]:
    """`(code, detail)`: the type and message of the activity's own error, or what a timeout means."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return cause.type or "failed", cause.message
    if isinstance(cause, exceptions.TimeoutError):
        if cause.type == TimeoutType.HEARTBEAT:
            return WORKER_LOST, "The worker that did this was lost, and so were those that tried it again."
        return TIMED_OUT, "It took longer than its bound."
    return "failed", "It failed for a reason that is in the operators' log."


def earlier_cause(error: ActivityError) -> str | None:
    """What the attempt before said when time ran out during the last one; None when that was the first."""
    before = None if error.cause is None else error.cause.__cause__
    return before.message if isinstance(before, ApplicationError) else None
