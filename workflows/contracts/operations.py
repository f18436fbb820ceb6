"""Operations: the public handle of work that a POST began (`GET /api/operations/{id}`)."""

from enum import StrEnum


class OperationKind(StrEnum):
    """What was begun. The dev server's three carry the generation of the command that they stand for.

    `agent_task` has no row among the operations: the task's own row tells how far it is (storage/task_operations.py).
    """

    PROVISION_PROJECT = "provision_project"
    DELETE_PROJECT = "delete_project"
    START_DEV_SERVER = "start_dev_server"
    STOP_DEV_SERVER = "stop_dev_server"
    RESTART_DEV_SERVER = "restart_dev_server"
    AGENT_TASK = "agent_task"


class OperationState(StrEnum):
    """`running` until the work has ended; an ended operation never changes again."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
