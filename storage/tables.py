"""The tables. Times are UTC with time zone; secrets are stored as SHA-256 or encrypted, never as they are."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy's declarative attribute
        int: BigInteger,
        str: Text,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
    }


class User(Table):
    """A person. `email` as they wrote it, unique without regard to case."""

    __tablename__ = "users"
    __table_args__ = (Index("uq_users_email_lower", text("lower(email)"), unique=True),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    email: Mapped[str]
    name: Mapped[str | None]
    password_hash: Mapped[str]
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    is_superuser: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RefreshToken(Table):
    """One link of a rotating chain. `used_at`: when it was spent; `revoked_at`: when its family ended."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    family: Mapped[UUID] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Ticket(Table):
    """A single-use credential for a query string; spending it deletes the row.

    `family` or `api_key_id`: the session or API key that asked for it, with which it ends.
    """

    __tablename__ = "tickets"

    token_hash: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    scopes: Mapped[list[str] | None]
    family: Mapped[UUID | None]
    api_key_id: Mapped[UUID | None]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class ApiKey(Table):
    """A long-lived credential. `scopes` None: all of its user's. `prefix`: the first characters, to tell keys apart."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class LoginFailure(Table):
    """A failed login, counted against account and address for five minutes. `subject`: `account:…` or `address:…`."""

    __tablename__ = "login_failures"
    __table_args__ = (Index("ix_login_failures_subject_at", "subject", "at"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    subject: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Project(Table):
    """A project. One of `template`, `git_url` and `source_project_id` (a fork) says where its files come from.

    `last_seq`: number of the newest event of its log, raised under the row's lock.
    """

    __tablename__ = "projects"
    __table_args__ = (Index("ix_projects_user_id_id", "user_id", "id"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    template: Mapped[str | None]
    git_url: Mapped[str | None]
    git_ref: Mapped[str | None]
    source_project_id: Mapped[int | None]
    state: Mapped[str]
    state_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    last_seq: Mapped[int] = mapped_column(server_default=text("0"))


class DevServerRow(Table):
    """A project's dev server. `generation` counts accepted commands, `observed_generation` those that the
    workflow has heard of: a difference that lasts means that a signal was lost. `action`: the newest command's.
    """

    __tablename__ = "dev_servers"

    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"), primary_key=True)
    state: Mapped[str] = mapped_column(server_default=text("'stopped'"))
    reason: Mapped[str | None]
    exit_code: Mapped[int | None]
    log_tail: Mapped[str | None]
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    last_activity_at: Mapped[datetime | None]
    action: Mapped[str | None]
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    observed_generation: Mapped[int] = mapped_column(server_default=text("0"))
    commanded_at: Mapped[datetime | None]


class Lease(Table):
    """Who keeps a dev server awake. `expires_at` None: until it is given back."""

    __tablename__ = "leases"

    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime | None]


class EnvironmentVariable(Table):
    """A variable of a project's dev server; the value is encrypted."""

    __tablename__ = "environment_variables"

    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value_encrypted: Mapped[bytes]


class EventRow(Table):
    """The append-only log, see storage/event_log.py."""

    __tablename__ = "events"
    __table_args__ = (
        Index(
            "ix_events_file_changed",
            "project_id",
            text("(data->>'path')"),
            "seq",
            postgresql_where=text("type = 'file.changed'"),
        ),
    )

    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[UUID | None]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class EventWriter(Table):
    """A process that writes events in batches. `batch`: number of the newest one that was committed.

    A batch whose commit's answer was lost is sent again, and this row says whether it had been committed.
    """

    __tablename__ = "event_writers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    batch: Mapped[int]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Operation(Table):
    """Work that a POST began. Outlives its project, so it refers to it by number only.

    `generation`: the dev server command that it stands for. `error`: `{code, detail, retryable}`.
    """

    __tablename__ = "operations"
    __table_args__ = (
        Index("ix_operations_running", "project_id", "kind", postgresql_where=text("state = 'running'")),
        Index("ix_operations_user_id_id", "user_id", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    project_id: Mapped[int]
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'running'"))
    stage: Mapped[str | None]
    generation: Mapped[int | None]
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class IdempotencyKey(Table):
    """The first answer to a POST with an `Idempotency-Key`, for 24 hours. `status` None: still being worked on.

    `owner`: `user:…`, or `address:…` before a login. `body_encrypted`: answers of the auth routes hold tokens.
    `made`: id of what the request has made, written in the transaction that made it; its route knows its meaning.
    """

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body_encrypted: Mapped[bytes | None]
    made: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class PreviewToken(Table):
    """Opens a preview: once as a link (`spent_at`), until `expires_at` as a header."""

    __tablename__ = "preview_tokens"
    __table_args__ = (ForeignKeyConstraint(["project_id"], [Project.id], ondelete="CASCADE"),)

    token_hash: Mapped[bytes] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)
    spent_at: Mapped[datetime | None]
