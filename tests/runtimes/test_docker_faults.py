"""The engine's own words, as it has said them, and what follows from each."""

import pytest
from aiodocker.exceptions import DockerError

from activities.errors import (
    ContainerMissingError,
    ImageMissingError,
    NameTakenError,
    NoPlaceError,
    NotRunningError,
    ResourcesExhaustedError,
    RuntimeFault,
    RuntimeUnavailableError,
    SpecInvalidError,
)
from activities.runtimes.docker_faults import to_fault


@pytest.mark.parametrize(
    ("status", "message", "fault", "retried"),
    [
        (404, "No such image: studio-devserver:latest", ImageMissingError, False),
        (404, "No such container: abc", ContainerMissingError, False),
        (409, 'Conflict. The container name "/user1-project1" is already in use', NameTakenError, True),
        (409, "Container abc is not running", NotRunningError, False),
        (403, "no available IPv4 addresses on this network's address pools: n (abc)", NoPlaceError, False),
        (500, "mkdir /var/lib/docker: no space left on device", ResourcesExhaustedError, True),
        (400, "Minimum memory limit allowed is 6MB", SpecInvalidError, False),
        (500, "network n is ambiguous (2 matches found on name)", NameTakenError, True),
        (500, "something else", RuntimeUnavailableError, True),
    ],
)
def test_an_engines_refusal_is_classed_by_its_cause(
    status: int, message: str, fault: type[RuntimeFault], retried: bool
) -> None:
    found = to_fault(DockerError(status, message))
    assert (type(found), found.retryable) == (fault, retried)
