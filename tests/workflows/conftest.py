"""Two real Temporal servers: the dev server for all that isn't a timer, and the one that skips time for timers.

The time-skipping server mishandles the cancellation of an activity that ends at the same moment, so only what needs
its clock runs on it.
"""

import shutil
from collections.abc import AsyncIterator

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from workflows.contracts.starts import PROJECT_ID, TASK_STATE, USER_ID


def binary(name: str) -> str:
    found = shutil.which(name, path=".venv/bin") or shutil.which(name)
    assert found, f"{name} is a dependency: run `uv sync`"
    return found


@pytest.fixture
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    async with await WorkflowEnvironment.start_time_skipping(
        data_converter=pydantic_data_converter, test_server_existing_path=binary("temporal-test-server")
    ) as environment:
        await environment.client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=environment.client.namespace,
                search_attributes={
                    key.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD for key in (USER_ID, PROJECT_ID, TASK_STATE)
                },
            )
        )
        yield environment


@pytest.fixture
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    async with await WorkflowEnvironment.start_local(
        data_converter=pydantic_data_converter,
        dev_server_existing_path=binary("temporal"),
        dev_server_log_level="error",
        search_attributes=[USER_ID, PROJECT_ID, TASK_STATE],
    ) as environment:
        yield environment
