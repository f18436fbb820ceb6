"""Know what a model call owes whose end nobody heard of: the price of its prompt."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "model_calls",
        sa.Column("input_usd", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("model_calls", "input_usd")
