"""`GET /api/usage`."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict

from api.auth.dependencies import CurrentUser
from api.errors import problems
from api.fields import Usd
from api.pagination import Page, PageQuery
from api.services import ServicesDep
from storage import model_ledger
from workflows.contracts.errors import InvalidError

router = APIRouter(prefix="/api/usage", tags=["models"])

_DEFAULT: Final = timedelta(days=30)
_FARTHEST: Final = timedelta(days=366)


class UsageOut(BaseModel):
    """One day (UTC), project and model. `project_id` null: calls over `/v1`. A project may be gone by now."""

    model_config = ConfigDict(from_attributes=True)

    day: date
    project_id: int | None
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Usd


class UsagePage(Page[UsageOut]):
    """The page, with what the month came to so far. `budget_usd` null: nothing bounds it."""

    month_cost_usd: Usd
    budget_usd: Usd | None


@router.get("", responses=problems({422: "bad_since"}))
async def list_usage(
    user: CurrentUser,
    services: ServicesDep,
    page: PageQuery,
    since: Annotated[AwareDatetime | date | None, Query(description="At most 366 days ago; by default 30.")] = None,
) -> UsagePage:
    """My tokens and their cost by day, project and model, newest day first; calls under way aren't in it yet."""
    begin = _begin(since)
    offset = page.after_id() or 0
    async with services.database.transaction() as session:
        rows = await model_ledger.usage_by_day(session, user.user_id, begin, limit=page.limit + 1, offset=offset)
        month = await model_ledger.month_of(
            session, user.user_id, default_monthly_usd=services.config.user_monthly_budget_usd
        )
    shown = [UsageOut.model_validate(row) for row in rows[: page.limit]]
    listed = page.answer(shown, more=len(rows) > page.limit, last_id=lambda _: offset + page.limit)
    return UsagePage(
        items=listed.items, next_cursor=listed.next_cursor, month_cost_usd=month.spent, budget_usd=month.budget
    )


def _begin(since: datetime | date | None) -> datetime:
    now = datetime.now(UTC)
    if since is None:
        return now - _DEFAULT
    moment = since if isinstance(since, datetime) else datetime(since.year, since.month, since.day, tzinfo=UTC)
    if moment < now - _FARTHEST:
        raise InvalidError("`since` is more than 366 days ago.", code="bad_since")
    return moment
