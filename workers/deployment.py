"""Builds of the worker as Temporal knows them: which one new workflows begin on, and what still runs on which.

A workflow stays with the build that began it, so that no history is ever replayed by other code. Those that live long
begin a new run on the current build (`workflows/handover.py`); `workers/release.py` makes a build the current one.
"""

import time
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.message import Message
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeWorkerDeploymentRequest,
    DescribeWorkerDeploymentResponse,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

from workflows.contracts.names import TASK_QUEUE

_NOT_YET = frozenset({RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION})
_ANSWER = timedelta(seconds=3)
_CHANGE = timedelta(seconds=20)
"""A change is told to each part of the server's queue before it is answered."""
_POLL_S = 90.0
"""A worker that lives asks for work at least once a minute."""


@dataclass(frozen=True)
class RunningWorkflow:
    """A workflow that is open, with the run of it that was seen."""

    id: str
    run_id: str
    type: str


def deployment_config(name: str, build_id: str) -> WorkerDeploymentConfig:
    """A worker that takes nothing but what this build began, and what begins while it is the current one."""
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(name, build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


class WorkerDeployment:
    """All builds of the worker under one name. Every method raises `RPCError` within seconds when Temporal is away."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name

    async def current(self) -> str | None:
        """The build that new workflows begin on; None: no workflow begins at all."""
        described = await self._describe()
        if described is None:
            return None
        return described.worker_deployment_info.routing_config.current_deployment_version.build_id or None

    async def builds(self) -> list[str]:
        """Every build that Temporal remembers."""
        described = await self._describe()
        if described is None:
            return []
        return [summary.deployment_version.build_id for summary in described.worker_deployment_info.version_summaries]

    async def make_current(self, build_id: str) -> bool:
        """Let new workflows begin on this build. False when no worker of it asks for all kinds of work yet."""
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace=self._client.namespace,
            deployment_name=self._name,
            build_id=build_id,
            identity=self._client.identity,
        )
        try:
            await self._client.workflow_service.set_worker_deployment_current_version(
                request, retry=True, timeout=_CHANGE
            )
        except RPCError as error:
            if error.status in _NOT_YET:
                return False
            raise
        return True

    async def running(self, build_id: str) -> list[RunningWorkflow]:
        """The open workflows that stay with this build. The list may be a second late."""
        query = f"TemporalWorkerDeploymentVersion = '{self._name}:{build_id}' AND ExecutionStatus = 'Running'"
        return [
            RunningWorkflow(found.id, found.run_id, found.workflow_type)
            async for found in self._client.list_workflows(query, rpc_timeout=_ANSWER)
        ]

    async def works(self, build_id: str) -> bool:
        """Whether a worker of this build has asked for work lately; one that was killed is missed after 90 s."""
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=TASK_QUEUE),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        answer = await self._client.workflow_service.describe_task_queue(request, retry=True, timeout=_ANSWER)
        oldest = time.time() - _POLL_S
        return any(
            poller.deployment_options.build_id == build_id and poller.last_access_time.ToSeconds() > oldest
            for poller in answer.pollers
        )

    def handle(self, workflow: RunningWorkflow) -> WorkflowHandle[Message, None]:
        """To the very run that was seen, not to one that has followed it."""
        return self._client.get_workflow_handle(workflow.id, run_id=workflow.run_id)

    async def _describe(self) -> DescribeWorkerDeploymentResponse | None:
        request = DescribeWorkerDeploymentRequest(namespace=self._client.namespace, deployment_name=self._name)
        try:
            return await self._client.workflow_service.describe_worker_deployment(request, retry=True, timeout=_ANSWER)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise
