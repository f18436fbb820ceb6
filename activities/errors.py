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
"""

from collections.abc import Iterator
from contextlib import contextmanager
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


def to_application_error(fault: RuntimeFault) -> ApplicationError:
    """The fault as Temporal sees it: `type` is the code, retried only when its cause may pass."""
    return ApplicationError(str(fault), type=fault.code, non_retryable=not fault.retryable)


@contextmanager
def converting_errors() -> Iterator[None]:
    """Let the errors of ports and domain leave an activity as Temporal understands them: classed by cause."""
    try:
        yield
    except RuntimeFault as fault:
        raise to_application_error(fault) from fault
    except StudioError as error:
        raise ApplicationError(error.detail, type=error.code, non_retryable=not error.retryable) from error
