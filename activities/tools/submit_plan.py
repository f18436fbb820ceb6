"""`submit_plan`: offered while a task may only look; its approval is the plan's."""

from pydantic import Field

from activities.tools.arguments import ToolArguments
from activities.tools.tool import Tool, ToolContext, ToolKind, ToolResult


class SubmitPlanArguments(ToolArguments):
    """What is to be allowed."""

    plan: str = Field(
        description="What you will do, in a few clear steps, in Markdown.", min_length=1, max_length=20_000
    )


class SubmitPlan(Tool[SubmitPlanArguments]):
    """Runs only once the plan is allowed."""

    name = "submit_plan"
    description = "Submit your plan to the project's owner, who allows it or says what to change."
    kind = ToolKind.ALONE
    arguments = SubmitPlanArguments

    async def run(self, context: ToolContext, arguments: SubmitPlanArguments) -> ToolResult:
        """Say so."""
        del context, arguments
        return ToolResult("Your plan is allowed. Carry it out.")


TOOL = SubmitPlan()
