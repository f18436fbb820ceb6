"""The one place where a fault's cause decides whether Temporal tries again.

RuntimeFault
├── RuntimeUnavailableError    engine or cluster doesn't answer: retry
├── ImageMissingError          the image isn't there: not by itself
├── NameTakenError             another container holds the name: retry, the loser of a race finds the winner
├── ContainerCrashedError      ended with an exit code: the project's own fault, no retry
├── ContainerMissingError      there is no such container: no retry
├── NotRunningError            it is there and doesn't run: no retry
├── ResourcesExhaustedError    quota, disk, memory, address ranges: retry, slowly
│   └── NoPlaceError           the user's own servers fill the user's network: not by itself
└── SpecInvalidError           the engine refuses what we ask for: no retry

ModelFault
├── ModelUnavailableError      no answer, 5xx, a stream that broke off: retry
├── ModelThrottledError        429 of a rate limit: retry, not before it says
├── ModelKeyRefusedError       401, 403: the user's key is revoked or may not use this model: no retry
├── ModelMissingError          404: the server has no such model: no retry
├── ModelBudgetError           the proxy says that the key's budget is spent: no retry, the task pauses
├── ModelQuotaError            429 `insufficient_quota`: the provider's account is empty: no retry
├── ContextOverflowError       the conversation is longer than the model takes: no retry, it is compacted
└── ModelRefusedError          400, 422: the provider refuses the request as it is: no retry
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import ClassVar

from temporalio.exceptions import ApplicationError

from workflows.contracts.errors import StudioError


class RuntimeFault(Exception):  # noqa: N818 -- a fault is classed by cause; its subclasses are the errors
    """Root of what a driver raises. `code` goes into operations and events; the message is for the owner."""

    code: ClassVar[str] = "runtime_fault"
    retryable: ClassVar[bool] = False


class RuntimeUnavailableError(RuntimeFault):
    """The engine or the cluster doesn't answer."""

    code = "runtime_unavailable"
    retryable = True


class ImageMissingError(RuntimeFault):
    """The dev-server image isn't there and can't be pulled."""

    code = "image_missing"


class NameTakenError(RuntimeFault):
    """Another container holds the name at this moment."""

    code = "name_taken"
    retryable = True


class ContainerCrashedError(RuntimeFault):
    """The container ended by itself."""

    code = "crashed"

    def __init__(self, message: str, *, exit_code: int | None, log_tail: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.log_tail = log_tail


class ContainerMissingError(RuntimeFault):
    """There is no container for this project."""

    code = "container_missing"


class NotRunningError(RuntimeFault):
    """The container is there, but nothing can be run in it: start the project first."""

    code = "not_running"


class ResourcesExhaustedError(RuntimeFault):
    """Quota, disk, memory or addresses are used up."""

    code = "resources_exhausted"
    retryable = True


class NoPlaceError(ResourcesExhaustedError):
    """All addresses of the user's network are taken by running dev servers of the same user."""

    retryable = False


class SpecInvalidError(RuntimeFault):
    """The runtime refuses the container as it was asked for."""

    code = "spec_invalid"


class ModelFault(Exception):  # noqa: N818 -- as RuntimeFault
    """Root of what a language model's server answers wrongly with. The message is for the owner: no key, no prompt.

    `retry_after`: seconds before which another try is pointless, where the server says so.
    """

    code: ClassVar[str] = "model_fault"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelUnavailableError(ModelFault):
    """The server doesn't answer, fails, or broke off in the middle of an answer."""

    code = "model_unavailable"
    retryable = True


class ModelThrottledError(ModelFault):
    """Too many requests or tokens in too short a time."""

    code = "model_throttled"
    retryable = True


class ModelKeyRefusedError(ModelFault):
    """The key is unknown, revoked, or may not use this model."""

    code = "model_key_refused"


class ModelMissingError(ModelFault):
    """The server has no model of this name."""

    code = "unknown_model"


class ModelBudgetError(ModelFault):
    """The proxy's own budget of this key is spent."""

    code = "model_budget_exceeded"


class ModelQuotaError(ModelFault):
    """The account behind the server has nothing left; its operator must see to it."""

    code = "model_quota_exhausted"


class ContextOverflowError(ModelFault):
    """The conversation is longer than the model takes."""

    code = "context_overflow"


class ModelRefusedError(ModelFault):
    """The provider refuses the request as it is."""

    code = "model_refused"


def to_application_error(fault: RuntimeFault | ModelFault) -> ApplicationError:
    """The fault as Temporal sees it: `type` is the code, retried only when its cause may pass."""
    retry_after = fault.retry_after if isinstance(fault, ModelFault) else None
    return ApplicationError(
        str(fault),
        type=fault.code,
        non_retryable=not fault.retryable,
        next_retry_delay=None if retry_after is None else timedelta(seconds=retry_after),
    )


@contextmanager
def converting_errors() -> Iterator[None]:
    """Let the errors of ports and domain leave an activity as Temporal understands them: classed by cause."""
    try:
        yield
    except (RuntimeFault, ModelFault) as fault:
        raise to_application_error(fault) from fault
    except StudioError as error:
        raise ApplicationError(error.detail, type=error.code, non_retryable=not error.retryable) from error
