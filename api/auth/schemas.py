"""Bodies of `/api/auth`."""

from typing import Annotated, Literal

from pydantic import BaseModel, EmailStr, StringConstraints

from api.fields import Label, RequestBody
from api.users.schemas import Password, UserOut

RefreshTokenText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Registration(RequestBody):
    """A new account."""

    email: EmailStr
    password: Password
    name: Label | None = None


class TokenAnswer(BaseModel):
    """A session: `access_token` for `expires_in` seconds, `refresh_token` to be spent for the next pair."""

    user: UserOut
    access_token: str
    refresh_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 -- the scheme's name, not a token
    expires_in: int


class RefreshIn(RequestBody):
    """The refresh token; browsers leave it out and send the cookie."""

    refresh_token: RefreshTokenText | None = None


class Nothing(RequestBody):
    """An empty object."""


class TicketAnswer(BaseModel):
    """A single-use ticket for a query string."""

    ticket: str
    expires_in: int
