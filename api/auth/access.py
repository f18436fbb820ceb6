"""Access that ends while a stream is open: what every stream asks every `sse.ACCESS_CHECK_S` seconds.

Access ends with the session (logout, a password changed elsewhere) or the API key (deleted, expired) by which it was
opened, also when a ticket stood between; with the user's account; and with the project.
"""

import asyncio
from typing import NoReturn

from api import sse
from api.auth.dependencies import Principal
from api.auth.tokens import invalid_credentials
from api.services import Services
from storage import credentials, projects
from storage.projects import ProjectRecord
from workflows.contracts.errors import NotFoundError, StudioError, UnavailableError


async def still_allowed(services: Services, principal: Principal) -> bool:
    """Whether the user is active, and the session or API key by which they came still stands."""
    return await credentials.lives(services.database, principal.source)


async def may_still_see(services: Services, principal: Principal, project: ProjectRecord) -> bool:
    """Whether the caller is still allowed in, and the project is still there and theirs."""
    return await _refusal(services, principal, project) is None


async def until_refused(services: Services, principal: Principal, project: ProjectRecord) -> NoReturn:
    """Wait until the caller may no longer see the project; for WebSockets, which tell the reason.

    Raises `UnauthenticatedError` or `NotFoundError`. An outage takes nobody's access away: it is asked again.
    """
    while True:
        await asyncio.sleep(sse.ACCESS_CHECK_S)
        try:
            refusal = await _refusal(services, principal, project)
        except UnavailableError:
            continue
        if refusal is not None:
            raise refusal


async def _refusal(services: Services, principal: Principal, project: ProjectRecord) -> StudioError | None:
    if not await still_allowed(services, principal):
        return invalid_credentials()
    async with services.database.reading() as session:
        now = await projects.get(session, project.id)
    return None if now is not None and now.user_id == principal.user_id else NotFoundError()
