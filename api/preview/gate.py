"""Who gets into a preview. Traefik asks before every request; its answer decides what the server behind it sees.

| the request has | answer |
|---|---|
| `?token=` of ours | 302 to the clean address with the cookies, once; 401 when spent, expired or another project's |
| the cookie, or `X-Preview-Token` | 200 with the headers that go on; 404 when the project is gone |
| the same, and the server is down | 503: the page that wakes it, or a problem |
| neither | 401 |
A WebSocket must come from the preview's own pages: a browser sends its cookies from any page.

Whether a server is down is the row's to say. The proxy's list of servers is late by moments: an address in it may
belong to nobody by then, or to somebody else. One that starts is seen as soon as the proxy knows it: the row is late.
"""

from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from api.preview.activity import PreviewActivity
from api.preview.credentials import (
    OwnAuthorization,
    PreviewCookies,
    foreign_cookies,
    token_in,
    without_token,
)
from api.preview.gate_key import gate_key
from api.preview.waking import answer_in_place
from api.services import Services
from storage import previews
from workflows.contracts.dev_servers import DevServerState
from workflows.contracts.errors import DeniedError, NotFoundError, UnauthenticatedError
from workflows.contracts.names import ProjectRef, parse_preview_host

USER_HEADER = "x-preview-user"
TOKEN_HEADER = "x-preview-token"  # noqa: S105 -- a header's name

_DOWN: Final[frozenset[str]] = frozenset({DevServerState.STOPPED, DevServerState.STOPPING, DevServerState.FAILED})
_NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True)
class Visit:
    """A request to a preview, as Traefik tells it. `host` with its port; `uri`: path and query."""

    ref: ProjectRef
    host: str
    uri: str
    headers: Headers

    @property
    def is_websocket(self) -> bool:
        """Traefik drops the hop-by-hop `Upgrade`; no WebSocket handshake goes without this one."""
        return "sec-websocket-key" in self.headers


class PreviewGate:
    """Checks visits. One per application, made from its services; `close` it with them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._database = services.database
        self._domain = services.config.preview_domain
        self._scheme = services.config.preview_scheme
        self._cookies = PreviewCookies(services.secrets, https=self._scheme == "https")
        self._own_authorization = OwnAuthorization(services.secrets)
        self.key = gate_key(services.secrets)
        self.activity = PreviewActivity(services.database, services.config.idle_timeout_s)

    async def close(self) -> None:
        """Finish what is being written."""
        await self.activity.close()

    def visit(self, host: str, uri: str, headers: Headers) -> Visit:
        """The visit behind a request's headers. Raises `NotFoundError` when the host is no preview's."""
        ref = parse_preview_host(host, self._domain)
        if ref is None:
            raise NotFoundError
        return Visit(ref, host, uri, headers)

    async def check(self, visit: Visit) -> Response:
        """Answer 200 with what goes on to the server, 302, or what stands in place of one that is down.

        Raises what else API.md says of a preview. The visit's own method is `X-Forwarded-Method`.
        """
        token = token_in(visit.uri)
        if token is not None and not visit.is_websocket:
            return await self._redeem(visit, token)
        if await self._admit(visit) in _DOWN:
            method, accept = (visit.headers.get(name, "") for name in ("x-forwarded-method", "accept"))
            return await answer_in_place(self._services, visit.ref, method=method, accept=accept)
        self.activity.note(visit.ref.project_id)
        return self._pass_on(visit)

    async def check_in_place(self, visit: Visit) -> Response:
        """As `check`, for nginx, which passes on neither a redirect nor a second cookie.

        A token that is good answers 200 with the cookie, and stays in the address, spent: the cookie opens that again.
        """
        token = token_in(visit.uri)
        redeemed = token is not None and not visit.is_websocket and await self._spend(visit, token)
        if not redeemed:
            await self._admit(visit)
        self.activity.note(visit.ref.project_id)
        response = self._pass_on(visit)
        if redeemed:
            session_cookie, frame_cookie = self._cookies.issue(visit.ref)
            response.headers["set-cookie"] = frame_cookie if self._scheme == "https" else session_cookie
        return response

    async def _spend(self, visit: Visit, token: str) -> bool:
        async with self._database.reading() as session:
            return await previews.spend_token(session, token, visit.ref)

    async def _redeem(self, visit: Visit, token: str) -> Response:
        if not await self._spend(visit, token):
            raise UnauthenticatedError("This link was used already, has expired, or is another project's.")
        # Absolute, with a host that was checked: a path like `//elsewhere/` must not lead there.
        address = f"{self._scheme}://{visit.host}{without_token(visit.uri)}"
        response = Response(None, 302, headers={"location": address, **_NO_STORE})
        for cookie in self._cookies.issue(visit.ref):
            response.headers.append("set-cookie", cookie)
        return response

    async def _admit(self, visit: Visit) -> str:
        """How the visited server stands."""
        header_token = visit.headers.get(TOKEN_HEADER)
        if self._cookies.opens(visit.headers.getlist("cookie"), visit.ref):
            self._check_origin(visit)
            async with self._database.reading() as session:
                state = await previews.server_state(session, visit.ref)
            if state is None:
                raise NotFoundError("This project is gone.")
        elif header_token is not None:
            if "origin" in visit.headers:
                self._check_origin(visit)
            async with self._database.reading() as session:
                state = await previews.server_state_by_token(session, header_token, visit.ref)
            if state is None:
                raise UnauthenticatedError("This preview token has expired, or is another project's.")
        else:
            raise UnauthenticatedError("Only the project's owner gets in here: open the preview from the studio.")
        return state

    def _check_origin(self, visit: Visit) -> None:
        if visit.is_websocket and visit.headers.get("origin", "").lower() != f"{self._scheme}://{visit.host}".lower():
            raise DeniedError("A WebSocket of a preview can be opened by the preview's own pages only.")

    def _pass_on(self, visit: Visit) -> Response:
        """Traefik puts these in place of the request's own; one that isn't here is taken out of the request."""
        headers = MutableHeaders({USER_HEADER: str(visit.ref.user_id)})
        cookies = foreign_cookies(visit.headers.getlist("cookie"))
        if cookies is not None:
            headers["cookie"] = cookies
        authorization = visit.headers.get("authorization")
        if authorization is not None and not self._own_authorization.recognises(authorization):
            headers["authorization"] = authorization
        return Response(None, 200, headers=headers)
