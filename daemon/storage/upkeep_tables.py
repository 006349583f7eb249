"""The tables of what is done for checkpoints between cycles: the mirror's queue, scrubs, rehearsals of a restore."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
)

from daemon.storage.column_types import PortableText, UtcDateTime
from daemon.storage.kinds import MirrorState
from daemon.storage.schema import ROW_ID, metadata, one_of, run_id, version

mirror_tasks = Table(
    "mirror_tasks",
    metadata,
    run_id(),
    Column("version", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_try_at", UtcDateTime, nullable=False),
    Column("last_error", PortableText),
    Column("mirrored_at", UtcDateTime),
    PrimaryKeyConstraint("run_id", "version"),
    version("version"),
    one_of("state", MirrorState),
    CheckConstraint("(state = 'mirrored') = (mirrored_at IS NOT NULL)", name="mirrored_has_time"),
    Index("ix_mirror_tasks_run_id_state", "run_id", "state"),
)

scrubs = Table(
    "scrubs",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    Column("version", String(128), nullable=False),
    Column("sound", Boolean, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("detail", PortableText),
    Column("at", UtcDateTime, nullable=False),
    version("version"),
    Index("ix_scrubs_run_id_version", "run_id", "version"),
)

rehearsals = Table(
    "rehearsals",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    Column("version", String(128), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("detail", PortableText),
    Column("at", UtcDateTime, nullable=False),
    version("version"),
    Index("ix_rehearsals_run_id", "run_id"),
)
