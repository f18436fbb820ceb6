"""Know which users are being deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("is_leaving", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index("ix_users_leaving", "users", ["id"], postgresql_where=sa.text("is_leaving"))


def downgrade() -> None:
    op.drop_index("ix_users_leaving", table_name="users", postgresql_where=sa.text("is_leaving"))
    op.drop_column("users", "is_leaving")
