"""`/api/auth`: accounts, sessions, tickets."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, BackgroundTasks, Body, Cookie, Depends, Request, Response, status
from fastapi.security import OAuth2PasswordRequestForm

from api.auth import service
from api.auth.addresses import client_address
from api.auth.dependencies import AuthToolsDep, TicketUser
from api.auth.schemas import Nothing, RefreshIn, Registration, TicketAnswer, TokenAnswer
from api.auth.service import TICKET_LIFETIME_S, SessionTokens
from api.auth.tokens import invalid_credentials
from api.errors import problems
from api.onboarding import begin_onboarding
from api.services import ApiConfig, ServicesDep
from api.users.schemas import UserOut
from workflows.contracts.errors import DeniedError

router = APIRouter(prefix="/api/auth", tags=["auth"])

REFRESH_COOKIE = "studio_refresh"
_COOKIE_PATH = "/api/auth"
_LONGEST_TOKEN = 200


async def offered_refresh_token(
    request: Request,
    services: ServicesDep,
    body: Annotated[RefreshIn | None, Body()] = None,
    studio_refresh: Annotated[str | None, Cookie(include_in_schema=False)] = None,
) -> str | None:
    """The refresh token of the body, else of the cookie. A cookie is taken from our own pages only."""
    if body is not None and body.refresh_token is not None:
        return body.refresh_token
    if studio_refresh is None or len(studio_refresh) > _LONGEST_TOKEN:
        return None
    origin = request.headers.get("origin")
    if origin is not None and not _is_ours(origin, request, services.config):
        raise DeniedError("The cookie is only taken from pages of this service.", code="foreign_origin")
    return studio_refresh


RefreshTokenDep = Annotated[str | None, Depends(offered_refresh_token)]


@router.post("/register", status_code=status.HTTP_201_CREATED, responses=problems({409: "email_taken"}))
async def register(
    services: ServicesDep, tools: AuthToolsDep, body: Registration, response: Response, later: BackgroundTasks
) -> TokenAnswer:
    """Make an account and sign in."""
    tokens = await service.register(services, tools, body)
    later.add_task(begin_onboarding, services, tokens.user.id)
    return _signed_in(services.config, response, tokens)


@router.post("/login", responses=problems({401: "bad_credentials", 429: "too_many_requests"}))
async def login(
    request: Request,
    services: ServicesDep,
    tools: AuthToolsDep,
    form: Annotated[OAuth2PasswordRequestForm, Depends()],
    response: Response,
) -> TokenAnswer:
    """Sign in; `username` is the email. After 10 failures in 5 minutes, of an account or an address, 429."""
    tokens = await service.login(services, tools, form.username.strip(), form.password, client_address(request))
    return _signed_in(services.config, response, tokens)


@router.post("/refresh", responses=problems({401: "token_reused", 403: "foreign_origin"}))
async def refresh(
    services: ServicesDep, tools: AuthToolsDep, token: RefreshTokenDep, response: Response
) -> TokenAnswer:
    """Spend a refresh token, of the body or the cookie, for a new pair.

    For 30 seconds after that it may be spent again, for a second tab; later it ends the session: `token_reused`.
    """
    if token is None:
        raise invalid_credentials()
    return _signed_in(services.config, response, await service.refresh(services, tools, token))


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT, responses=problems({403: "foreign_origin"}))
async def logout(services: ServicesDep, token: RefreshTokenDep) -> Response:
    """End the session of a refresh token, and with it its access tokens; 204 also when it was invalid."""
    await service.logout(services, token)
    response = Response(status_code=status.HTTP_204_NO_CONTENT)
    response.delete_cookie(
        REFRESH_COOKIE, path=_COOKIE_PATH, secure=_is_https(services.config), httponly=True, samesite="strict"
    )
    return response


@router.post("/ticket")
async def ticket(user: TicketUser, services: ServicesDep, body: Nothing | None = None) -> TicketAnswer:
    """Get a single-use ticket for the query string of a WebSocket or an EventSource."""
    del body  # nothing is in it; declared so that `{}` is taken and anything else refused
    return TicketAnswer(ticket=await service.issue_ticket(services, user), expires_in=TICKET_LIFETIME_S)


def _signed_in(config: ApiConfig, response: Response, tokens: SessionTokens) -> TokenAnswer:
    response.set_cookie(
        REFRESH_COOKIE,
        tokens.refresh_token,
        max_age=config.refresh_token_s,
        path=_COOKIE_PATH,
        secure=_is_https(config),
        httponly=True,
        samesite="strict",
    )
    return TokenAnswer(
        user=UserOut.of(tokens.user),
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expires_in=config.access_token_s,
    )


def _is_https(config: ApiConfig) -> bool:
    return config.public_url.startswith("https:")


def _is_ours(origin: str, request: Request, config: ApiConfig) -> bool:
    public = urlsplit(config.public_url)
    if origin in {f"{public.scheme}://{public.netloc}", *config.cors_origins}:
        return True
    return urlsplit(origin).netloc == request.headers.get("host")
