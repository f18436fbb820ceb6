"""What the worker's task activities stand on, opened and closed in one place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio.client import Client

from activities.agent.accounting import Accounts, AgentSettings
from activities.agent.cancellation import CancellationWatch
from activities.agent.compaction import Compaction
from activities.agent.ending import TaskEndings
from activities.agent.keys import UserKeys
from activities.agent.model_step import ModelStep
from activities.agent.tool_run import ToolRuns, Workshop
from activities.agent_tasks import AgentParts, AgentTasks
from activities.dev_server_control import DevServerControls
from activities.preview_access import PreviewAccesses
from storage.engine import Database
from storage.event_batcher import EventBatcher
from storage.event_listener import EventListener
from workers.settings import ServiceSettings
from workers.wiring import Foundation


@asynccontextmanager
async def open_agent_tasks(
    client: Client, foundation: Foundation, settings: ServiceSettings
) -> AsyncIterator[AgentTasks]:
    """The task activities of one worker; what they still have to tell is told on the way out."""
    database = foundation.database
    url = settings.database_url.get_secret_value()
    listener = EventListener(url)
    # What is streamed doesn't queue for a connection behind those who wait for a project's lock.
    streaming = Database(url, pool_size=1)
    batcher = EventBatcher(streaming)
    agent = AgentSettings(
        max_output_tokens=settings.model_max_output_tokens,
        approval_limit_s=settings.approval_timeout_s,
        monthly_usd=settings.user_monthly_budget_usd,
    )
    accounts = Accounts(database, agent)
    dev_servers = DevServerControls(
        database, client, start_timeout_s=settings.start_timeout_s, idle_grace_s=settings.idle_grace_s
    )
    previews = PreviewAccesses(
        database, scheme=settings.preview_scheme, domain=settings.preview_domain, port=settings.shown_preview_port
    )
    workshop = Workshop(foundation.files, foundation.runtime, dev_servers.of, previews.of)
    try:
        yield AgentTasks(
            AgentParts(
                models=foundation.models,
                accounts=accounts,
                steps=ModelStep(database, batcher, foundation.models, accounts, agent),
                compaction=Compaction(database, foundation.models, accounts, agent),
                tools=ToolRuns(database, batcher, workshop),
                endings=TaskEndings(database),
                cancellation=CancellationWatch(database, listener),
                keys=UserKeys(database, client, foundation.secrets, is_kept=foundation.model_keys is not None),
                dev_servers=dev_servers,
            )
        )
    finally:
        await batcher.close()
        await streaming.close()
        await listener.close()
