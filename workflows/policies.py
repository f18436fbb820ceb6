"""Every class of activity with its timeouts and retries, each number with its reason.

What may not be retried is said by the activity itself (`activities/errors.py`): a policy only says how often and how
long a cause that may pass is waited for.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig

STICKY_TIMEOUT = timedelta(seconds=2)
"""A killed worker freezes its cached workflows for this long; the default of 10 s would be seen by users."""

HEARTBEAT_THROTTLE = timedelta(seconds=2)
"""Cancellation reaches an activity with its heartbeat: at the default throttle a stop would take 25 s."""

PROGRAMMING_ERRORS: Final = [ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError]
"""A fault in workflow code fails its run rather than hanging it for ever: the rows stand, and Reconcile begins a new
run. A history that today's code doesn't follow is not among them: it waits for the code that does.
"""

_HEARTBEAT = timedelta(seconds=6)
"""Three throttled heartbeats: a dead worker's activity is tried elsewhere after this long."""

_PAID_HEARTBEAT = timedelta(seconds=10)
"""For model calls, whose next attempt is paid for again: a worker that is only busy isn't taken for a dead one."""


def _backing_off(first: float = 0.2, longest: float = 10.0, attempts: int = 0) -> RetryPolicy:
    return RetryPolicy(
        initial_interval=timedelta(seconds=first),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(seconds=longest),
        maximum_attempts=attempts,
    )


ROW = ActivityConfig(
    # One short transaction; ten seconds are a Postgres that recovers while we wait.
    start_to_close_timeout=timedelta(seconds=10),
    # An hour of Postgres being away is an outage that an operator has seen; the row is healed by Reconcile then.
    schedule_to_close_timeout=timedelta(hours=1),
    retry_policy=_backing_off(),
)

FILES = ActivityConfig(
    # A git source has its own bound of five minutes, a fork copies at most the disk bound of a project.
    start_to_close_timeout=timedelta(minutes=10),
    schedule_to_close_timeout=timedelta(minutes=30),
    heartbeat_timeout=_HEARTBEAT,
    # A source that fails for a cause that may pass is worth three tries; a person waits for the answer.
    retry_policy=_backing_off(first=1.0, attempts=4),
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)

STOP = ActivityConfig(
    # Five seconds of grace, then the engine kills; a loaded engine takes its time for both.
    start_to_close_timeout=timedelta(seconds=60),
    heartbeat_timeout=_HEARTBEAT,
    # Until the engine is back: a server that can't be stopped must not be called stopped.
    schedule_to_close_timeout=timedelta(hours=1),
    retry_policy=_backing_off(),
)

GIVING_UP = ActivityConfig(
    # As a stop.
    start_to_close_timeout=timedelta(seconds=60),
    heartbeat_timeout=_HEARTBEAT,
    # The owner is waiting to hear that a start has failed: what can't be stopped by then is left to Reconcile.
    schedule_to_close_timeout=timedelta(minutes=2),
    retry_policy=_backing_off(),
)

COMPENSATION = ActivityConfig(
    start_to_close_timeout=timedelta(minutes=5),
    heartbeat_timeout=_HEARTBEAT,
    # A deletion that was promised is carried out, however long a dependency is away: no bound on purpose.
    retry_policy=_backing_off(longest=60.0),
)

CLOSING = ActivityConfig(
    # Another workflow stops a container or leaves off a copy: minutes when an engine is away, and tried again then.
    start_to_close_timeout=timedelta(minutes=5),
    heartbeat_timeout=_HEARTBEAT,
    retry_policy=_backing_off(first=1.0),
)

WATCH = ActivityConfig(
    # As long as a server lives; a day only bounds what one attempt can hang unseen.
    start_to_close_timeout=timedelta(days=1),
    heartbeat_timeout=_HEARTBEAT,
    # It has no end of its own but the server's, so it has no bound on attempts.
    retry_policy=_backing_off(longest=5.0),
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)

MODEL = ActivityConfig(
    # The longest answer, slowly streamed, after the longest queue of other reservations.
    start_to_close_timeout=timedelta(minutes=30),
    heartbeat_timeout=_PAID_HEARTBEAT,
    # No bound on attempts: a database or a worker may be away for long. How often a model's own faults are tried is
    # the activity's to say (activities/agent_tasks.py).
    retry_policy=_backing_off(first=0.5, longest=20.0),
    # The end of a cancelled task is written at once, and fences off what its attempt still says.
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)

TOOL = ActivityConfig(
    # The longest command has half an hour; a dev server may have to be started before it.
    start_to_close_timeout=timedelta(minutes=50),
    heartbeat_timeout=_HEARTBEAT,
    # What a tool can't do is an answer, not a failure: retried are lost workers and dependencies that are away.
    schedule_to_close_timeout=timedelta(hours=6),
    retry_policy=_backing_off(longest=5.0),
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)

MODEL_KEY = ActivityConfig(
    # A handful of short questions to the proxy, each with a bound of its own.
    start_to_close_timeout=timedelta(minutes=3),
    heartbeat_timeout=_HEARTBEAT,
    # A proxy that is away comes back: whoever was registered or shut out meanwhile is told to it then. No bound.
    retry_policy=_backing_off(first=0.5, longest=30.0),
)

SWEEP = ActivityConfig(
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=_HEARTBEAT,
    # The next run of the schedule is the real retry.
    retry_policy=_backing_off(first=1.0, attempts=3),
)


@dataclass(frozen=True)
class StartBounds:
    """Bounds of a dev server's start, from the setting `START_TIMEOUT_S`."""

    start_timeout_s: float

    def launch(self) -> ActivityConfig:
        """Creating and starting the container: retried while the engine is away, within the start's own bound."""
        return ActivityConfig(
            schedule_to_close_timeout=timedelta(seconds=self.start_timeout_s),
            heartbeat_timeout=_HEARTBEAT,
            retry_policy=_backing_off(longest=5.0),
            # A stop may begin only after a launch has ended: it must not overtake it.
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )

    def probe(self) -> ActivityConfig:
        """Waiting for the first HTTP answer; an install inside the container falls into it."""
        return ActivityConfig(
            schedule_to_close_timeout=timedelta(seconds=self.start_timeout_s),
            heartbeat_timeout=_HEARTBEAT,
            retry_policy=_backing_off(longest=5.0),
            cancellation_type=ActivityCancellationType.TRY_CANCEL,
        )
