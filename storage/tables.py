"""The tables. Times are UTC with time zone; secrets are stored as SHA-256 or encrypted, never as they are."""

from datetime import datetime
from decimal import Decimal
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
    Numeric,
    Text,
    UniqueConstraint,
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
        list[dict[str, Any]]: JSONB,
        list[str]: ARRAY(Text),
        Decimal: Numeric(20, 10),
    }


class User(Table):
    """A person. `email` as they wrote it, unique without regard to case. `monthly_budget_usd` None: the setting's.

    `is_leaving`: they are being deleted, and are shut out until nothing of them is left.
    """

    __tablename__ = "users"
    __table_args__ = (
        Index("uq_users_email_lower", text("lower(email)"), unique=True),
        Index("ix_users_leaving", "id", postgresql_where=text("is_leaving")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    email: Mapped[str]
    name: Mapped[str | None]
    password_hash: Mapped[str]
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    is_superuser: Mapped[bool] = mapped_column(server_default=text("false"))
    monthly_budget_usd: Mapped[Decimal | None]
    is_leaving: Mapped[bool] = mapped_column(server_default=text("false"))
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
    """A project. One of `template`, `git_url` and `source_project_id` (a fork) says where its files come from."""

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


class EventLogRow(Table):
    """How far a project's log goes. `last_seq`: number of its newest event, raised under the row's lock.

    Not in the project's own row, which tasks hold while they begin and end their steps: tokens don't wait for that.
    """

    __tablename__ = "event_logs"

    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"), primary_key=True)
    last_seq: Mapped[int] = mapped_column(server_default=text("0"))


class DevServerRow(Table):
    """A project's dev server. `generation` counts accepted commands, `observed_generation` those that the
    workflow has heard of: a difference that lasts means that a signal was lost. `action`: the newest command's.
    `stage`: the last one told since the state began.
    """

    __tablename__ = "dev_servers"

    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"), primary_key=True)
    state: Mapped[str] = mapped_column(server_default=text("'stopped'"))
    reason: Mapped[str | None]
    exit_code: Mapped[int | None]
    log_tail: Mapped[str | None]
    stage: Mapped[str | None]
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
        Index("ix_events_task", "task_id", "seq", postgresql_where=text("task_id IS NOT NULL")),
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


class Chat(Table):
    """A conversation in a project. `last_seq`: number of its newest message, raised under the row's lock."""

    __tablename__ = "chats"
    __table_args__ = (Index("ix_chats_project_id_id", "project_id", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"))
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    title: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seq: Mapped[int] = mapped_column(server_default=text("0"))


class AgentTaskRow(Table):
    """A task, agent's or chat's. `prompt_seq`: number of its prompt; what is before that in the chat is its past.

    `allowed_tools`: those that `allow_always` was said of. `cancel_requested_at`: from then on nothing new begins.
    """

    __tablename__ = "agent_tasks"
    __table_args__ = (
        Index("ix_agent_tasks_project_id_id", "project_id", "id"),
        Index("ix_agent_tasks_user_id_id", "user_id", "id"),
        Index(
            "uq_agent_tasks_active",
            "chat_id",
            unique=True,
            postgresql_where=text("state IN ('running', 'awaiting_approval')"),
        ),
        Index(
            "ix_agent_tasks_open",
            "updated_at",
            postgresql_where=text("state IN ('queued', 'running', 'awaiting_approval')"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"))
    chat_id: Mapped[UUID] = mapped_column(ForeignKey(Chat.id, ondelete="CASCADE"), index=True)
    mode: Mapped[str]
    prompt: Mapped[str]
    prompt_seq: Mapped[int]
    model: Mapped[str]
    tools: Mapped[list[str] | None]
    approval_mode: Mapped[str]
    max_steps: Mapped[int]
    budget_usd: Mapped[Decimal | None]
    state: Mapped[str] = mapped_column(server_default=text("'queued'"))
    state_reason: Mapped[str | None]
    state_detail: Mapped[str | None]
    plan_allowed: Mapped[bool] = mapped_column(server_default=text("false"))
    allowed_tools: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    todo: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))
    cancel_requested_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]
    retry_of: Mapped[UUID | None]
    input_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    output_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cost_usd: Mapped[Decimal] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.clock_timestamp())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Message(Table):
    """A message of a chat. `task_id`: the task that it began, steered or came from.

    `step`: for a user's message the step that first saw it, None while no step has; for an assistant's its last step.
    """

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("chat_id", "seq"),
        Index(
            "uq_messages_client_message_id",
            "chat_id",
            "client_message_id",
            unique=True,
            postgresql_where=text("client_message_id IS NOT NULL"),
        ),
        Index("ix_messages_task_id", "task_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    chat_id: Mapped[UUID] = mapped_column(ForeignKey(Chat.id, ondelete="CASCADE"))
    seq: Mapped[int]
    role: Mapped[str]
    content: Mapped[str]
    task_id: Mapped[UUID | None]
    step: Mapped[int | None]
    client_message_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TaskStep(Table):
    """A model's answer, whole. Steps count from 1. `finish_reason` `cancelled` or `failed`: what had come by then."""

    __tablename__ = "task_steps"

    task_id: Mapped[UUID] = mapped_column(ForeignKey(AgentTaskRow.id, ondelete="CASCADE"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]
    finish_reason: Mapped[str]
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    cost_usd: Mapped[Decimal] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ToolCall(Table):
    """A tool call of a step. `arguments`: JSON text as the model wrote it.

    `intent`: what the running call is about to do, noted before it does it, so that an attempt that follows can tell
    whether it was done.
    """

    __tablename__ = "tool_calls"
    __table_args__ = (UniqueConstraint("task_id", "step", "position"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[UUID] = mapped_column(ForeignKey(AgentTaskRow.id, ondelete="CASCADE"))
    step: Mapped[int]
    position: Mapped[int]
    wave: Mapped[int]
    name: Mapped[str]
    arguments: Mapped[str]
    state: Mapped[str]
    result: Mapped[str | None]
    exit_code: Mapped[int | None]
    intent: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class ToolImage(Table):
    """A picture that a tool call has answered with: PNG or JPEG, at most 1 MiB."""

    __tablename__ = "tool_images"

    call_id: Mapped[str] = mapped_column(ForeignKey(ToolCall.id, ondelete="CASCADE"), primary_key=True)
    data: Mapped[bytes]


class Approval(Table):
    """A question to the task's owner, and what they said. `call_id` None: for a plan."""

    __tablename__ = "approvals"
    __table_args__ = (Index("ix_approvals_task_id_step", "task_id", "step"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    task_id: Mapped[UUID] = mapped_column(ForeignKey(AgentTaskRow.id, ondelete="CASCADE"))
    step: Mapped[int]
    call_id: Mapped[str | None]
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    decision: Mapped[str | None]
    note: Mapped[str | None]
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]


class TaskSummary(Table):
    """What stands, for the model, in place of a task's past up to and with step `upto` (0: the chat before it)."""

    __tablename__ = "task_summaries"

    task_id: Mapped[UUID] = mapped_column(ForeignKey(AgentTaskRow.id, ondelete="CASCADE"), primary_key=True)
    upto: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TaskFile(Table):
    """Which version of a file a task has last read or written."""

    __tablename__ = "task_files"

    task_id: Mapped[UUID] = mapped_column(ForeignKey(AgentTaskRow.id, ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    etag: Mapped[str]


class EventFenceRow(Table):
    """Who may write on a subject of a task, see storage/event_fences.py."""

    __tablename__ = "event_fences"

    task_id: Mapped[UUID] = mapped_column(ForeignKey(AgentTaskRow.id, ondelete="CASCADE"), primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[UUID]


class ModelCall(Table):
    """One model call in our ledger: reserved before it is made, settled from the usage that came back.

    Outlives its project and task, so it refers to them by number only. `estimated`: the server didn't say what it cost.
    `input_usd`: the prompt's share of `reserved_usd`, which is owed also when nobody hears how the call ended.
    """

    __tablename__ = "model_calls"
    __table_args__ = (
        Index("ix_model_calls_user_id_at", "user_id", "at"),
        Index("ix_model_calls_reserved", "task_id", postgresql_where=text("settled_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    project_id: Mapped[int | None]
    task_id: Mapped[UUID | None]
    model: Mapped[str]
    reserved_usd: Mapped[Decimal]
    input_usd: Mapped[Decimal] = mapped_column(server_default=text("0"))
    cost_usd: Mapped[Decimal] = mapped_column(server_default=text("0"))
    input_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    output_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    estimated: Mapped[bool] = mapped_column(server_default=text("false"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]


class ModelKey(Table):
    """A user's virtual key at the LLM proxy, encrypted; empty while it is being replaced or revoked.

    `version` is raised by each change. `is_stale`: the proxy hasn't been told yet. `closed_by`: mark of the secret key.
    """

    __tablename__ = "model_keys"
    __table_args__ = (Index("ix_model_keys_stale", "user_id", postgresql_where=text("is_stale")),)

    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    key_encrypted: Mapped[bytes]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    is_stale: Mapped[bool] = mapped_column(server_default=text("false"))
    closed_by: Mapped[str] = mapped_column(server_default=text("''"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
