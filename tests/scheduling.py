"""How `make test` shares the tests among its processes: by file, and those that stand on one stack together.

The end-to-end tests of one runtime share a stack that takes seconds to come up, so they go to one process, whatever
their files.
"""

import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

END_TO_END = re.compile(r"tests/e2e/.*?\[(docker|local|kubernetes)\b")


class ByFileOrStack(LoadFileScheduling):  # type: ignore[misc]  # xdist comes without types
    """As `--dist loadfile`, with one group for each runtime of the end-to-end tests."""

    def _split_scope(self, nodeid: str) -> str:
        match = END_TO_END.match(nodeid)
        return f"end to end, {match[1]}" if match else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFileOrStack | None:
    if config.getvalue("dist") != "loadfile":
        return None
    # In the folders' order. Those of many tests first, as it is otherwise, leaves the long stories for the end, where
    # one process is busy and the others have nothing left to do.
    config.option.loadscopereorder = False
    return ByFileOrStack(config, log)
