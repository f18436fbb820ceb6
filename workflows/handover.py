"""When a run that lives long makes way for the next one, and how the next one begins."""

from typing import NoReturn

from temporalio import workflow
from temporalio.workflow import ContinueAsNewVersioningBehavior


def should_hand_over() -> bool:
    """Whether history has grown long, or workers of a newer build have been made the current ones.

    A run stays with the build that began it, whose workers are kept until nothing runs on it. It learns of a newer one
    with whatever wakes it next; `workers/leaving.py` sends a `look` to those who sleep.
    """
    info = workflow.info()
    return info.is_continue_as_new_suggested() or info.is_target_worker_deployment_version_changed()


def hand_over(argument: object) -> NoReturn:
    """End this run and begin the next one, on the current build: it has no history that other code could misread."""
    workflow.continue_as_new(argument, initial_versioning_behavior=ContinueAsNewVersioningBehavior.AUTO_UPGRADE)
