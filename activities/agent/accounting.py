"""What a task's model calls cost: admitted before they are made, settled from what came back."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from activities.agent.conversation import Conversation
from activities.model_costs import estimate, price, tokens_of
from activities.ports import ModelInfo, ModelUsage
from storage import agent_tasks, leases, model_ledger, projects
from storage.agent_tasks import TaskRecord
from storage.engine import Database
from storage.model_ledger import Admission, Reservation
from storage.tables import AgentTaskRow
from workflows.contracts.agent_tasks import NextMove, PauseReason, StepOutcome, TaskState, TaskStepInput
from workflows.contracts.dev_servers import LeaseKind

_PAUSES = {Admission.TASK_BUDGET: PauseReason.BUDGET, Admission.USER_BUDGET: PauseReason.USER_BUDGET}
_WHAT_TO_DO = {
    PauseReason.APPROVAL: "It waits for your answer.",
    PauseReason.BUDGET: "The task's budget is spent. It goes on when its `budget_usd` is raised.",
    PauseReason.USER_BUDGET: "Your month's budget is spent. It goes on when an operator raises that, or next month.",
    PauseReason.MAX_STEPS: "It has taken as many steps as it may. It goes on when its `max_steps` are raised.",
}


@dataclass(frozen=True)
class AgentSettings:
    """Settings of tasks. `approval_limit_s`: how long a pause waits for its user; `monthly_usd`: a user's default."""

    max_output_tokens: int = 8192
    approval_limit_s: float = 7 * 24 * 3600.0
    monthly_usd: Decimal | None = None


@dataclass(frozen=True)
class OpenCall:
    """A model call that has been admitted. `info` None: nothing is known of the model."""

    id: UUID
    task: TaskRecord
    talk: Conversation
    info: ModelInfo | None

    def reckoned(self, text: str) -> ModelUsage:
        """What it has used, when the server doesn't say."""
        sent, said = tokens_of(self.talk.size), tokens_of(len(text))
        return ModelUsage(sent, said, price(sent, said, self.info))

    def cost(self, usage: ModelUsage) -> Decimal:
        """What it has cost: by the server's word, else by the model's prices."""
        if usage.cost_usd is not None:
            return usage.cost_usd
        return price(usage.input_tokens, usage.output_tokens, self.info)


class Accounts:
    """Reserves and settles the calls of all tasks of a worker."""

    def __init__(self, database: Database, settings: AgentSettings) -> None:
        self._database = database
        self._settings = settings

    async def admit(
        self, session: AsyncSession, row: AgentTaskRow, talk: Conversation, info: ModelInfo | None
    ) -> OpenCall | StepOutcome | None:
        """Reserve what a call may cost; a pause when a budget is spent. None: others have reserved what is left, and
        settle soon. Project and task must be locked.
        """
        total, prompt = estimate(talk.size, self._settings.max_output_tokens, info)
        wanted = Reservation(
            id=uuid4(),
            user_id=row.user_id,
            model=row.model,
            estimate_usd=total,
            project_id=row.project_id,
            task_id=row.id,
            input_usd=prompt,
        )
        admission = await model_ledger.reserve(session, wanted, default_monthly_usd=self._settings.monthly_usd)
        if admission == Admission.WAIT:
            # What is in the way may be an attempt of this task that died.
            await model_ledger.settle_lost(session, row.id)
            admission = await model_ledger.reserve(session, wanted, default_monthly_usd=self._settings.monthly_usd)
        if admission == Admission.ADMITTED:
            return OpenCall(wanted.id, agent_tasks.record_of(row), talk, info)
        return await self.pause(session, row, _PAUSES[admission]) if admission in _PAUSES else None

    async def settle_failed(self, call: OpenCall, text: str) -> None:
        """A call that failed before its first word cost nothing; one that broke off is billed for what it said."""
        async with self._database.transaction() as session:
            await projects.lock(session, call.task.project_id)
            if text:
                await self.settle(session, call, call.reckoned(text), estimated=True)
            else:
                await model_ledger.release(session, call.id)

    async def settle(
        self,
        session: AsyncSession,
        call: OpenCall,
        usage: ModelUsage,
        *,
        estimated: bool,
        task: AgentTaskRow | None = None,
    ) -> Decimal:
        """Write down what the call used; returns its cost. Its project must be locked, and `task` is, where given."""
        cost = call.cost(usage)
        await model_ledger.settle(
            session,
            call.id,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=cost,
            estimated=estimated,
            task=task,
        )
        return cost

    async def pause_for_proxy(self, step: TaskStepInput) -> StepOutcome:
        """The proxy's own bound of the user's key is reached: the same pause as for ours."""
        async with self._database.transaction() as session:
            project = await projects.lock(session, step.project_id)
            row = None if project is None else await agent_tasks.lock(session, UUID(step.task_id))
            if row is None:
                return StepOutcome(move=NextMove.STOP)
            return await self.pause(session, row, PauseReason.USER_BUDGET)

    async def pause(
        self, session: AsyncSession, row: AgentTaskRow, reason: PauseReason, *, until: datetime | None = None
    ) -> StepOutcome:
        """The task waits for its user; its dev server may sleep meanwhile."""
        await agent_tasks.set_state(
            session, row, TaskState.AWAITING_APPROVAL, reason=reason, detail=_WHAT_TO_DO[reason]
        )
        await leases.release(session, row.project_id, LeaseKind.TASK, str(row.id))
        end = until or datetime.now(UTC) + timedelta(seconds=self._settings.approval_limit_s)
        return StepOutcome(move=NextMove.WAIT, until=end, reason=reason)
