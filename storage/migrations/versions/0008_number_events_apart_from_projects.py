"""Number events apart from projects: tokens don't wait for those who hold a project."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_logs",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_event_logs_project_id_projects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_event_logs")),
    )
    op.execute("INSERT INTO event_logs (project_id, last_seq) SELECT id, last_seq FROM projects")
    op.drop_column("projects", "last_seq")


def downgrade() -> None:
    op.add_column("projects", sa.Column("last_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.execute("UPDATE projects SET last_seq = event_logs.last_seq FROM event_logs WHERE project_id = projects.id")
    op.drop_table("event_logs")
