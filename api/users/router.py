"""`/api/users/me`: the caller's own account."""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request, Response, status

from api.auth import service
from api.auth.addresses import client_address
from api.auth.dependencies import AuthToolsDep, CurrentUser, SessionUser
from api.errors import problems
from api.pagination import Page, PageQuery
from api.services import ServicesDep
from api.users.schemas import ApiKeyIn, ApiKeyMade, ApiKeyOut, PasswordChange, UserOut, UserPatch
from storage import credentials, users
from workflows.contracts.errors import InvalidError

router = APIRouter(prefix="/api/users/me", tags=["users"])


@router.get("")
async def get_me(user: CurrentUser, services: ServicesDep) -> UserOut:
    """Who I am."""
    async with services.database.reading() as session:
        return UserOut.of(await users.get(session, user.user_id))


@router.patch("")
async def patch_me(user: CurrentUser, services: ServicesDep, body: UserPatch) -> UserOut:
    """Change my name."""
    async with services.database.transaction() as session:
        if "name" in body.model_fields_set:
            return UserOut.of(await users.rename(session, user.user_id, body.name))
        return UserOut.of(await users.get(session, user.user_id))


@router.post(
    "/password",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems({401: "bad_credentials", 429: "too_many_requests"}),
)
async def change_password(
    request: Request, user: SessionUser, services: ServicesDep, tools: AuthToolsDep, body: PasswordChange
) -> Response:
    """Change my password. Every other session ends at once, with its access tokens and all tickets; API keys stay."""
    await service.change_password(services, tools, user, body, client_address(request))
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.get("/api-keys")
async def list_api_keys(user: SessionUser, services: ServicesDep, page: PageQuery) -> Page[ApiKeyOut]:
    """My API keys, oldest first."""
    async with services.database.reading() as session:
        records = await credentials.page_of_api_keys(
            session, user.user_id, after=page.after_uuid(), limit=page.limit + 1
        )
    shown = [ApiKeyOut.of(record) for record in records[: page.limit]]
    return page.answer(shown, more=len(records) > page.limit, last_id=lambda key: key.id)


@router.post(
    "/api-keys",
    status_code=status.HTTP_201_CREATED,
    responses=problems({409: "api_key_limit", 422: "bad_expiry"}),
)
async def make_api_key(user: SessionUser, services: ServicesDep, body: ApiKeyIn) -> ApiKeyMade:
    """Make an API key, shown this once; send it as `Authorization: Bearer stu_…`."""
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidError("expires_at has passed already.", code="bad_expiry")
    scopes = None if body.scopes is None else frozenset[str](body.scopes)
    async with services.database.transaction() as session:
        record, key = await credentials.add_api_key(
            session, user.user_id, name=body.name, scopes=scopes, expires_at=body.expires_at
        )
    return ApiKeyMade.made(record, key)


@router.delete("/api-keys/{key_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(404))
async def delete_api_key(user: SessionUser, services: ServicesDep, key_id: UUID) -> Response:
    """Delete an API key; it stops working at once."""
    async with services.database.transaction() as session:
        await credentials.delete_api_key(session, user.user_id, key_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)
