"""How a checkpoint is stored, what is kept of it and pinned; what a mirror has; what was scrubbed and rehearsed.

Checkpoints of an earlier revision are what they were: full copies with their exact state, without an image's file.
`runs.last_write` names the newest write transaction, so that a COMMIT whose answer was lost can be looked up.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UTC = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("runs", sa.Column("last_write", sa.String(length=32), nullable=True))
    add_columns_of_checkpoints()
    create_mirror_tasks()
    op.create_table(
        "scrubs",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("sound", sa.Boolean(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("at", UTC, nullable=False),
        *of_checkpoint("scrubs"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scrubs")),
    )
    op.create_index("ix_scrubs_run_id_version", "scrubs", ["run_id", "version"], unique=False)
    op.create_table(
        "rehearsals",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("at", UTC, nullable=False),
        *of_checkpoint("rehearsals"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rehearsals")),
    )
    op.create_index("ix_rehearsals_run_id", "rehearsals", ["run_id"], unique=False)


def add_columns_of_checkpoints() -> None:
    kind = sa.CheckConstraint("kind IN ('full', 'keyframe', 'delta')", name=op.f("ck_checkpoints_kind"))
    op.add_column("checkpoints", sa.Column("kind", sa.String(length=16), kind, nullable=False, server_default="full"))
    op.add_column("checkpoints", sa.Column("image_digest", sa.String(length=128), nullable=True))
    op.add_column("checkpoints", sa.Column("image_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("checkpoints", sa.Column("chain_length", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("checkpoints", sa.Column("exact", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("checkpoints", sa.Column("lossy_after", sa.Integer(), nullable=True))
    op.add_column("checkpoints", sa.Column("pinned_at", UTC, nullable=True))
    op.add_column("checkpoints", sa.Column("pin_reason", sa.Text(), nullable=True))


def create_mirror_tasks() -> None:
    op.create_table(
        "mirror_tasks",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_try_at", UTC, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("mirrored_at", UTC, nullable=True),
        sa.CheckConstraint("state IN ('queued', 'mirrored')", name=op.f("ck_mirror_tasks_state")),
        sa.CheckConstraint(
            "(state = 'mirrored') = (mirrored_at IS NOT NULL)", name=op.f("ck_mirror_tasks_mirrored_has_time")
        ),
        *of_checkpoint("mirror_tasks"),
        sa.PrimaryKeyConstraint("run_id", "version", name=op.f("pk_mirror_tasks")),
    )
    op.create_index("ix_mirror_tasks_run_id_state", "mirror_tasks", ["run_id", "state"], unique=False)


def of_checkpoint(table: str) -> tuple[sa.ForeignKeyConstraint, sa.ForeignKeyConstraint]:
    """The keys into `checkpoints` and `runs` that all the new tables have."""
    return (
        sa.ForeignKeyConstraint(
            ["run_id", "version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f(f"fk_{table}_run_id_version"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f(f"fk_{table}_run_id")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup from before `dreamd db upgrade`: the new columns hold what happened")
