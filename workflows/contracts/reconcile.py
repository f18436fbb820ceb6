"""Reconciliation: what `Reconcile` compares, and what it reports to operators."""

from typing import Protocol

from pydantic import BaseModel, ConfigDict
from temporalio import activity


class ReconcileInput(BaseModel):
    """`grace_s`: what is younger is left alone, its own workflow may be at it. `dry_run`: report, change nothing."""

    model_config = ConfigDict(frozen=True)

    grace_s: float = 60.0
    dry_run: bool = False


class ReconcileReport(BaseModel):
    """Ids of projects, by what was found (and mended, unless it was a dry run).

    `provisions`, `deletions`: rows whose workflow wasn't there. `commands`: dev servers whose newest command no
    workflow serves. `orphans`: containers without a project. `strays`: containers that run though their row says
    that they don't. `tasks`: those with a task whose workflow wasn't there, or hadn't heard of what its rows say.
    `onboardings`: users (not projects) whose key at the LLM proxy isn't what their row says. `offboardings`:
    users whose deletion wasn't there. `expired_rows`: how many rows of spent credentials, old answers and old streams
    went.
    """

    model_config = ConfigDict(frozen=True)

    provisions: list[int] = []
    deletions: list[int] = []
    commands: list[int] = []
    orphans: list[int] = []
    strays: list[int] = []
    onboardings: list[int] = []
    offboardings: list[int] = []
    tasks: list[int] = []
    expired_rows: int = 0


class ReconcileActivities(Protocol):
    """The effects of a reconciliation. Each is safe to run twice and at once with everything else."""

    @activity.defn(name="restart_lost_work")
    async def restart_lost_work(self, request: ReconcileInput) -> ReconcileReport:
        """Start the workflows that rows ask for and that aren't there."""

    @activity.defn(name="sweep_containers")
    async def sweep_containers(self, request: ReconcileInput) -> ReconcileReport:
        """Remove containers without a project, stop those whose row says that they don't run."""

    @activity.defn(name="prune_rows")
    async def prune_rows(self, request: ReconcileInput) -> ReconcileReport:
        """Delete what has expired: spent credentials, old idempotent answers, counted login failures."""
