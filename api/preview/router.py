"""Preview tokens for clients, and the routes that Traefik alone asks (its requests show the gate's key)."""

import hmac
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Header, Query, Request, Response, WebSocket
from fastapi.requests import HTTPConnection
from pydantic import BaseModel

from api.dev_servers.schemas import preview_url
from api.errors import problem_of, problems, refuse_websocket
from api.preview.gate import USER_HEADER, PreviewGate
from api.preview.pages import closed_page
from api.preview.routing import routing_config
from api.preview.waking import answer_in_place, as_problem
from api.projects.dependencies import OwnedProject
from api.services import ApiConfig, ServicesDep
from storage import previews
from workflows.contracts.errors import DeniedError, NotFoundError, StudioError, UnauthenticatedError, UnavailableError

TOKEN_LIFETIME_S = 15 * 60
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_TITLES = {
    401: "This preview is private",
    404: "There is nothing here",
    503: "Try again in a moment",
}

router = APIRouter()


class PreviewTokenOut(BaseModel):
    """`url` opens the preview in a browser, once; `token` opens it as header `X-Preview-Token`, for `expires_in` s."""

    token: str
    url: str
    expires_in: int


@router.post("/api/projects/{project_id}/preview-token", tags=["dev servers"], responses=problems(401, 403, 404, 422))
async def create_preview_token(project: OwnedProject, services: ServicesDep, response: Response) -> PreviewTokenOut:
    """A token for the project's preview, shown only now."""
    response.headers["Cache-Control"] = "no-store"
    async with services.database.transaction() as session:
        token = await previews.add_token(session, project.ref, timedelta(seconds=TOKEN_LIFETIME_S))
    url = f"{preview_url(services.config, project)}/?token={token}"
    return PreviewTokenOut(token=token, url=url, expires_in=TOKEN_LIFETIME_S)


async def get_gate(
    connection: HTTPConnection,
    key: Annotated[str, Query()] = "",
    x_studio_gate: Annotated[str, Header()] = "",
) -> PreviewGate:
    """The gate of this application, for who knows its key; for all others there is nothing here."""
    gate = cast("PreviewGate", connection.app.state.preview_gate)
    if not hmac.compare_digest((key or x_studio_gate).encode(), gate.key.encode()):
        raise NotFoundError
    return gate


Gate = Annotated[PreviewGate, Depends(get_gate)]


@router.get("/internal/preview/auth", include_in_schema=False)
async def forward_auth(request: Request, gate: Gate, services: ServicesDep) -> Response:
    """Traefik's question before every request to a preview; see `PreviewGate.check`."""
    host = request.headers.get("x-forwarded-host", "")
    uri = request.headers.get("x-forwarded-uri", "/")
    try:
        return await gate.check(gate.visit(host, uri, request.headers))
    except StudioError as error:
        return _refusal(services.config, request, error)


@router.get("/internal/preview/nginx", include_in_schema=False)
async def nginx_auth(request: Request, host: str, gate: Gate, services: ServicesDep) -> Response:
    """Nginx's question before every request; see `PreviewGate.check_in_place`. A page's request wakes the server.

    `host`: the preview that it is about, written into its own Ingress. What the visitor names as such must be the same,
    and isn't enough: nginx routes a request line with an address by that, and tells us of the `Host` header.
    """
    try:
        address = urlsplit(request.headers.get("x-original-url", ""))
        visit = gate.visit(address.netloc, f"{address.path}?{address.query}", request.headers)
        if visit.ref != gate.visit(host, "/", request.headers).ref:
            raise DeniedError("This request names two hosts.")
        answer = await gate.check_in_place(visit)
        if request.headers.get("x-original-method") == "GET" and "text/html" in request.headers.get("accept", ""):
            await answer_in_place(services, visit.ref, method="GET", accept="text/html")
    except StudioError as error:
        refusal = as_problem(error)
        if refusal.status_code == HTTPStatus.NOT_FOUND:  # it takes 401 and 403 for a no, all else for a fault of ours
            refusal.status_code = HTTPStatus.FORBIDDEN
        return refusal
    return answer


@router.api_route("/internal/preview/fallback", methods=_METHODS, include_in_schema=False)
async def fallback(request: Request, gate: Gate, services: ServicesDep) -> Response:
    """What answers where no server does. Traefik has asked `forward_auth` before, and names the visitor."""
    try:
        visit = gate.visit(request.headers.get("host", ""), "/", request.headers)
        if request.headers.get(USER_HEADER) != str(visit.ref.user_id):
            raise UnauthenticatedError("Only the project's owner gets in here.")
        accept = request.headers.get("accept", "")
        return await answer_in_place(services, visit.ref, method=request.method, accept=accept)
    except StudioError as error:
        return _refusal(services.config, request, error)


@router.websocket("/internal/preview/fallback")
async def fallback_websocket(websocket: WebSocket, _gate: Gate) -> None:
    """Refuse a WebSocket to a server that doesn't run."""
    answer = problem_of(UnavailableError("The project isn't running."))
    if answer is not None:
        await refuse_websocket(websocket, answer)


@router.get("/internal/traefik/config", include_in_schema=False)
async def traefik_config(_gate: Gate, services: ServicesDep) -> dict[str, Any]:
    """Traefik's dynamic configuration of the dev servers that run now."""
    return routing_config(await services.runtime.discover(), services.config.preview_domain)


def _refusal(config: ApiConfig, request: Request, error: StudioError) -> Response:
    response = as_problem(error)
    if "text/html" in request.headers.get("accept", "") and response.status_code in _TITLES:
        title = _TITLES[response.status_code]
        text = (
            f"{error.detail} Sign in at {config.public_url}."
            if response.status_code == HTTPStatus.UNAUTHORIZED
            else error.detail
        )
        page = closed_page(config, response.status_code, title, text)
        for name in ("retry-after", "www-authenticate"):
            if name in response.headers:
                page.headers[name] = response.headers[name]
        return page
    return response
