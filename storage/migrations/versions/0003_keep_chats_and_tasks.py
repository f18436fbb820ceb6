"""Keep chats, tasks, their steps, and what models cost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_calls",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=True),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("reserved_usd", sa.Numeric(precision=20, scale=10), nullable=False),
        sa.Column("cost_usd", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("estimated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_model_calls_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_calls")),
    )
    op.create_index(
        "ix_model_calls_reserved",
        "model_calls",
        ["task_id"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_index("ix_model_calls_user_id_at", "model_calls", ["user_id", "at"], unique=False)
    op.create_table(
        "model_keys",
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("key_encrypted", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_model_keys_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_model_keys")),
    )
    op.create_table(
        "chats",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_chats_project_id_projects"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_chats_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chats")),
    )
    op.create_index("ix_chats_project_id_id", "chats", ["project_id", "id"], unique=False)
    op.create_index(op.f("ix_chats_user_id"), "chats", ["user_id"], unique=False)
    op.create_table(
        "agent_tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("chat_id", sa.Uuid(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("prompt_seq", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tools", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("approval_mode", sa.Text(), nullable=False),
        sa.Column("max_steps", sa.BigInteger(), nullable=False),
        sa.Column("budget_usd", sa.Numeric(precision=20, scale=10), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("state_detail", sa.Text(), nullable=True),
        sa.Column("plan_allowed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("allowed_tools", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("todo", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_reason", sa.Text(), nullable=True),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_usd", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["chat_id"], ["chats.id"], name=op.f("fk_agent_tasks_chat_id_chats"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_agent_tasks_project_id_projects"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_agent_tasks_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_tasks")),
    )
    op.create_index(op.f("ix_agent_tasks_chat_id"), "agent_tasks", ["chat_id"], unique=False)
    op.create_index(
        "ix_agent_tasks_open",
        "agent_tasks",
        ["updated_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'running', 'awaiting_approval')"),
    )
    op.create_index("ix_agent_tasks_project_id_id", "agent_tasks", ["project_id", "id"], unique=False)
    op.create_index("ix_agent_tasks_user_id_id", "agent_tasks", ["user_id", "id"], unique=False)
    op.create_index(
        "uq_agent_tasks_active",
        "agent_tasks",
        ["chat_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('running', 'awaiting_approval')"),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("chat_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("client_message_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["chat_id"], ["chats.id"], name=op.f("fk_messages_chat_id_chats"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sa.UniqueConstraint("chat_id", "seq", name=op.f("uq_messages_chat_id_seq")),
    )
    op.create_index("ix_messages_task_id", "messages", ["task_id"], unique=False)
    op.create_index(
        "uq_messages_client_message_id",
        "messages",
        ["chat_id", "client_message_id"],
        unique=True,
        postgresql_where=sa.text("client_message_id IS NOT NULL"),
    )
    op.create_table(
        "approvals",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["task_id"], ["agent_tasks.id"], name=op.f("fk_approvals_task_id_agent_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
    )
    op.create_index("ix_approvals_task_id_step", "approvals", ["task_id", "step"], unique=False)
    op.create_table(
        "event_fences",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["agent_tasks.id"], name=op.f("fk_event_fences_task_id_agent_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "subject", name=op.f("pk_event_fences")),
    )
    op.create_table(
        "task_files",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["agent_tasks.id"], name=op.f("fk_task_files_task_id_agent_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "path", name=op.f("pk_task_files")),
    )
    op.create_table(
        "task_steps",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_usd", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["agent_tasks.id"], name=op.f("fk_task_steps_task_id_agent_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "n", name=op.f("pk_task_steps")),
    )
    op.create_table(
        "task_summaries",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("upto", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["agent_tasks.id"], name=op.f("fk_task_summaries_task_id_agent_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "upto", name=op.f("pk_task_summaries")),
    )
    op.create_table(
        "tool_calls",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("wave", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.Column("intent", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["task_id"], ["agent_tasks.id"], name=op.f("fk_tool_calls_task_id_agent_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tool_calls")),
        sa.UniqueConstraint("task_id", "step", "position", name=op.f("uq_tool_calls_task_id_step_position")),
    )
    op.create_index(
        "ix_events_task", "events", ["task_id", "seq"], unique=False, postgresql_where=sa.text("task_id IS NOT NULL")
    )
    op.add_column("users", sa.Column("monthly_budget_usd", sa.Numeric(precision=20, scale=10), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "monthly_budget_usd")
    op.drop_index("ix_events_task", table_name="events", postgresql_where=sa.text("task_id IS NOT NULL"))
    op.drop_table("tool_calls")
    op.drop_table("task_summaries")
    op.drop_table("task_steps")
    op.drop_table("task_files")
    op.drop_table("event_fences")
    op.drop_index("ix_approvals_task_id_step", table_name="approvals")
    op.drop_table("approvals")
    op.drop_index(
        "uq_messages_client_message_id",
        table_name="messages",
        postgresql_where=sa.text("client_message_id IS NOT NULL"),
    )
    op.drop_index("ix_messages_task_id", table_name="messages")
    op.drop_table("messages")
    op.drop_index(
        "uq_agent_tasks_active",
        table_name="agent_tasks",
        postgresql_where=sa.text("state IN ('running', 'awaiting_approval')"),
    )
    op.drop_index("ix_agent_tasks_user_id_id", table_name="agent_tasks")
    op.drop_index("ix_agent_tasks_project_id_id", table_name="agent_tasks")
    op.drop_index(
        "ix_agent_tasks_open",
        table_name="agent_tasks",
        postgresql_where=sa.text("state IN ('queued', 'running', 'awaiting_approval')"),
    )
    op.drop_index(op.f("ix_agent_tasks_chat_id"), table_name="agent_tasks")
    op.drop_table("agent_tasks")
    op.drop_index(op.f("ix_chats_user_id"), table_name="chats")
    op.drop_index("ix_chats_project_id_id", table_name="chats")
    op.drop_table("chats")
    op.drop_table("model_keys")
    op.drop_index("ix_model_calls_user_id_at", table_name="model_calls")
    op.drop_index("ix_model_calls_reserved", table_name="model_calls", postgresql_where=sa.text("settled_at IS NULL"))
    op.drop_table("model_calls")
