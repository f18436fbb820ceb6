"""A user, and their API keys, as clients see and write them."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field, StringConstraints, field_validator

from api.fields import Label, RequestBody
from storage.credentials import ApiKeyRecord
from storage.users import UserRecord

Password = Annotated[str, StringConstraints(min_length=8, max_length=128)]
_LATEST_EXPIRY_YEAR = 9000


class UserOut(BaseModel):
    """A user."""

    id: int
    email: str
    name: str | None
    created_at: datetime
    is_superuser: bool

    @classmethod
    def of(cls, user: UserRecord) -> Self:
        """As the client sees it."""
        return cls.model_validate(user, from_attributes=True)


class UserPatch(RequestBody):
    """What to change; what isn't given stays, null removes the name."""

    name: Label | None = None


class PasswordChange(RequestBody):
    """The old password proves that it is really them."""

    current: Annotated[str, StringConstraints(max_length=128)]
    new: Password


class ApiKeyIn(RequestBody):
    """A key to make. Without `scopes` it may do all that its user may; without `expires_at` it lasts."""

    name: Label
    scopes: Annotated[list[Literal["read", "write"]], Field(min_length=1, max_length=2)] | None = None
    expires_at: AwareDatetime | None = None

    @field_validator("expires_at")
    @classmethod
    def _storable(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.year > _LATEST_EXPIRY_YEAR:
            raise ValueError("is too far away")
        return value


class ApiKeyOut(BaseModel):
    """A key, without the key. `prefix`: its first characters."""

    id: UUID
    name: str
    prefix: str
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, record: ApiKeyRecord) -> Self:
        """As the client sees it."""
        return cls.model_validate(_shown(record))


class ApiKeyMade(ApiKeyOut):
    """A key just made; `key` is shown this once."""

    key: str

    @classmethod
    def made(cls, record: ApiKeyRecord, key: str) -> Self:
        """As the client sees it, once."""
        return cls.model_validate(_shown(record) | {"key": key})


def _shown(record: ApiKeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "prefix": record.prefix,
        "scopes": None if record.scopes is None else sorted(record.scopes),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "last_used_at": record.last_used_at,
    }
