"""The tables of what comes in and what is used up: claims, fingerprints, refusals, imported sources, diversity."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
)

from daemon.domain.states import ImportKind, ImportState, RefusalReason, Source
from daemon.storage.column_types import PortableJson, PortableText, UtcDateTime
from daemon.storage.kinds import ClaimKind, FingerprintKind
from daemon.storage.schema import ROW_ID, cycle, metadata, one_of, run_id

claims = Table(
    "claims",
    metadata,
    run_id(),
    Column("content_hash", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    *cycle(nullable=True),
    Column("claimed_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("run_id", "content_hash"),  # over all kinds: what is held out can never be claimed
    one_of("kind", ClaimKind),
    CheckConstraint("(kind = 'held_out') = (cycle IS NULL)", name="held_out_has_no_cycle"),
    Index("ix_claims_run_id_cycle", "run_id", "cycle"),
)

fingerprints = Table(
    "fingerprints",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    Column("content_hash", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    *cycle(nullable=True),
    Column("shingles", LargeBinary, nullable=False),
    UniqueConstraint("run_id", "content_hash"),
    one_of("kind", FingerprintKind),
    CheckConstraint("(kind = 'held_out') = (cycle IS NULL)", name="held_out_has_no_cycle"),
    Index("ix_fingerprints_run_id_cycle", "run_id", "cycle"),
)

fingerprint_bands = Table(
    "fingerprint_bands",
    metadata,
    # No foreign key to `runs`: the fingerprint has it, and there are sixteen rows of these for each.
    Column("run_id", BigInteger, nullable=False),
    Column("band_key", BigInteger, nullable=False),
    Column("fingerprint_id", BigInteger, ForeignKey("fingerprints.id"), nullable=False),
    PrimaryKeyConstraint("run_id", "band_key", "fingerprint_id"),
    sqlite_with_rowid=False,
)

refusals = Table(
    "refusals",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    *cycle(),
    Column("source", String(16), nullable=False),
    Column("pack", String(128), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("detail", PortableText, nullable=False),
    Column("provenance", PortableText),
    Column("text", PortableText, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    one_of("source", Source),
    one_of("reason", RefusalReason),
    CheckConstraint("reason <> 'secret' OR text = ''", name="a_secret_is_kept_nowhere"),
    Index("ix_refusals_run_id_cycle", "run_id", "cycle"),
)

sources = Table(
    "sources",
    metadata,
    run_id(),
    Column("name", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("path", PortableText, nullable=False),
    Column("state", String(16), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("line", BigInteger, nullable=False),
    Column("tail_digest", String(128), nullable=False),
    Column("found", PortableJson, nullable=False),
    Column("counts", PortableJson, nullable=False),
    Column("registered_at", UtcDateTime, nullable=False),
    Column("approved_at", UtcDateTime),
    PrimaryKeyConstraint("run_id", "name"),
    one_of("kind", ImportKind),
    one_of("state", ImportState),
    CheckConstraint("(state = 'approved') = (approved_at IS NOT NULL)", name="approved_at_some_time"),
)

source_reads = Table(
    "source_reads",
    metadata,
    run_id(),
    *cycle(),
    Column("name", String(128), nullable=False),
    Column("from_position", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("line", BigInteger, nullable=False),
    Column("tail_digest", String(128), nullable=False),
    Column("counts", PortableJson, nullable=False),
    Column("used", Boolean, nullable=False),
    PrimaryKeyConstraint("run_id", "cycle", "name"),
    ForeignKeyConstraint(["run_id", "name"], ["sources.run_id", "sources.name"]),
    CheckConstraint("position >= from_position", name="forwards"),
)

batch_diversity = Table(
    "batch_diversity",
    metadata,
    run_id(),
    *cycle(),
    Column("num_accept", Integer, nullable=False),
    Column("num_push_back", Integer, nullable=False),
    Column("num_general", Integer, nullable=False),
    Column("general_share", Double, nullable=False),
    Column("num_families", Integer, nullable=False),
    Column("mean_constraints", Double, nullable=False),
    Column("prompt_distinct_2", Double, nullable=False),
    Column("chosen_distinct_2", Double, nullable=False),
    Column("mean_jaccard", Double, nullable=False),
    PrimaryKeyConstraint("run_id", "cycle"),
)
