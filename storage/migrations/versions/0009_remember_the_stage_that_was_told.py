"""Remember the stage that was told: two commands that one start serves don't tell it twice."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dev_servers", sa.Column("stage", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("dev_servers", "stage")
