"""How the service itself gets into a preview: as the project's owner does, by a token made for one visit."""

from datetime import timedelta
from typing import Final

from activities.tools.tool import PreviewAccess, PreviewAddress
from storage import previews
from storage.engine import Database
from workflows.contracts.names import ProjectRef, preview_url

_LIFETIME: Final = timedelta(minutes=3)


class PreviewAccesses:
    """Makes the way into each project's preview. `port` None: the scheme's own; see `workflows.contracts.names`."""

    def __init__(self, database: Database, *, scheme: str, domain: str, port: int | None) -> None:
        self._database = database
        self._scheme = scheme
        self._domain = domain
        self._port = port

    def of(self, ref: ProjectRef) -> "ProjectPreview":
        """The way into one project's preview."""
        return ProjectPreview(self._database, ref, preview_url(ref, self._scheme, self._domain, self._port))


class ProjectPreview(PreviewAccess):
    """Each visit gets a token of its own, good for three minutes, for this project alone."""

    def __init__(self, database: Database, ref: ProjectRef, url: str) -> None:
        self._database = database
        self._ref = ref
        self._url = url

    async def open(self) -> PreviewAddress:
        """See `PreviewAccess`."""
        async with self._database.transaction() as session:
            token = await previews.add_token(session, self._ref, _LIFETIME)
        return PreviewAddress(self._url, token)
