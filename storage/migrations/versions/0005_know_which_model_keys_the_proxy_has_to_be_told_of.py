"""Know of which model keys the proxy has to be told, and which secret key has encrypted them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_keys", sa.Column("is_stale", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("model_keys", sa.Column("closed_by", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.create_index("ix_model_keys_stale", "model_keys", ["user_id"], postgresql_where=sa.text("is_stale"))


def downgrade() -> None:
    op.drop_index("ix_model_keys_stale", table_name="model_keys", postgresql_where=sa.text("is_stale"))
    op.drop_column("model_keys", "closed_by")
    op.drop_column("model_keys", "is_stale")
