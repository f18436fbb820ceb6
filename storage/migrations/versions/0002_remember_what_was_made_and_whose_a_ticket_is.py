"""Remember what a request with a key has made, and by which credential a ticket was asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("idempotency_keys", sa.Column("made", sa.Text(), nullable=True))
    op.add_column("tickets", sa.Column("family", sa.Uuid(), nullable=True))
    op.add_column("tickets", sa.Column("api_key_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("tickets", "api_key_id")
    op.drop_column("tickets", "family")
    op.drop_column("idempotency_keys", "made")
