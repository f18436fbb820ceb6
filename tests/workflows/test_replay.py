"""Histories of every release, replayed by today's code: a run that began before a deploy goes on after it."""

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from workers.worker import WORKFLOWS, workflow_runner

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def _replayer() -> Replayer:
    return Replayer(workflows=WORKFLOWS, workflow_runner=workflow_runner(), data_converter=pydantic_data_converter)


def test_there_are_histories() -> None:
    assert len(HISTORIES) >= 5


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_todays_code_replays(path: Path) -> None:
    await _replayer().replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text()))


async def test_a_changed_order_would_be_noticed() -> None:
    """Another workflow's history under the same name must fail, else the test above proves nothing."""
    path = next(path for path in HISTORIES if path.stem.startswith("provision-"))
    mangled = path.read_text().replace("create_project_files", "finish_provision")
    result = await _replayer().replay_workflow(
        WorkflowHistory.from_json("mangled", mangled), raise_on_replay_failure=False
    )
    assert result.replay_failure is not None
