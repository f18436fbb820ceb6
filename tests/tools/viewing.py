"""What a look at a page stands on: a dev server, and a way into its preview."""

from typing import Any, cast

from activities.tools.tool import DevServerView, PreviewAccess, ToolContext
from workflows.contracts.names import ProjectRef


class RunningServer:
    """A dev server that runs, or stands as it is told."""

    def __init__(self, view: DevServerView | None = None) -> None:
        self.stands = view or DevServerView("running", None, None, None)
        self.started = 0

    async def start(self) -> DevServerView:
        self.started += 1
        return self.stands


def context(preview: PreviewAccess, server: RunningServer | None = None) -> ToolContext:
    return ToolContext(
        id="call",
        ref=ProjectRef(1, 2),
        files=cast("Any", None),
        runtime=cast("Any", None),
        notes=cast("Any", None),
        output=cast("Any", None),
        dev_server=cast("Any", server or RunningServer()),
        preview=preview,
    )
