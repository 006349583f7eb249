"""The run database's tables. People read it with plain sqlite3 and psql: docs/database.md describes every table.

Everything belongs to a run, and most things to a cycle of it, so keys are natural ones: (run_id, cycle, ...).
`migrations/` creates exactly these tables; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    text,
    true,
)

from daemon.domain.states import (
    CheckpointKind,
    CheckpointState,
    ChosenSource,
    CompletionKind,
    CycleState,
    ExampleKind,
    Outcome,
    Side,
    Source,
)
from daemon.storage.column_types import PortableJson, PortableText, UtcDateTime
from daemon.storage.intake_tables import (
    batch_diversity,
    claims,
    fingerprint_bands,
    fingerprints,
    refusals,
    source_reads,
    sources,
)
from daemon.storage.kinds import EVENT_LEVELS, ChangeReason
from daemon.storage.schema import ROW_ID, cycle, metadata, one_of, run_id, version
from daemon.storage.upkeep_tables import mirror_tasks, rehearsals, scrubs
from daemon.storage.watching_tables import (
    breaker_changes,
    engine_checks,
    governor_decisions,
    probe_results,
    probe_runs,
    resting_families,
    rollbacks,
    verdicts,
)

__all__ = [
    "batch_diversity",
    "breaker_changes",
    "checkpoints",
    "claims",
    "completions",
    "cycles",
    "engine_checks",
    "events",
    "examples",
    "fingerprint_bands",
    "fingerprints",
    "governor_decisions",
    "lr_changes",
    "metadata",
    "mirror_tasks",
    "probe_results",
    "probe_runs",
    "refusals",
    "rehearsals",
    "resting_families",
    "rollbacks",
    "runs",
    "scenarios",
    "scrubs",
    "source_reads",
    "sources",
    "steps",
    "verdicts",
]

runs = Table(
    "runs",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("dreamd_version", String(64), nullable=False),
    Column("model_path", PortableText, nullable=False),
    Column("config", PortableJson, nullable=False),
    Column("head_version", String(128)),
    Column("epoch", Integer, nullable=False),
    Column("fingerprinted", Boolean, nullable=False, server_default=true()),
    Column("last_write", String(32)),
    UniqueConstraint("name"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    run_id(),
    Column("version", String(128), nullable=False),
    Column("cycle", Integer),  # no foreign key: cycles refer to checkpoints already
    Column("parent_version", String(128)),
    Column("batch_hash", String(64)),
    Column("root_hash", String(128), nullable=False),
    Column("weights_digest", String(128), nullable=False),
    Column("optimizer_digest", String(128), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("pruned_after", Integer),
    Column("kind", String(16), nullable=False, server_default="full"),
    Column("image_digest", String(128)),
    Column("image_bytes", BigInteger, nullable=False, server_default="0"),
    Column("chain_length", Integer, nullable=False, server_default="0"),
    Column("exact", Boolean, nullable=False, server_default=true()),
    Column("lossy_after", Integer),
    Column("pinned_at", UtcDateTime),
    Column("pin_reason", PortableText),
    PrimaryKeyConstraint("run_id", "version"),
    version("parent_version"),
    one_of("state", CheckpointState),
    one_of("kind", CheckpointKind),
    CheckConstraint("(parent_version IS NULL) = (cycle IS NULL)", name="base_has_no_cycle"),
    Index("ix_checkpoints_run_id_cycle", "run_id", "cycle"),
)
Index(
    "uq_checkpoints_base",
    checkpoints.c.run_id,
    unique=True,
    sqlite_where=text("parent_version IS NULL"),
    postgresql_where=text("parent_version IS NULL"),
)

cycles = Table(
    "cycles",
    metadata,
    run_id(),
    Column("number", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("outcome", String(16)),
    Column("reason", PortableText),
    Column("parent_version", String(128), nullable=False),
    Column("candidate_version", String(128)),
    Column("batch_hash", String(64)),
    Column("epoch", Integer, nullable=False),
    Column("config", PortableJson, nullable=False),
    Column("seconds", PortableJson, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("adjustments", PortableJson),
    PrimaryKeyConstraint("run_id", "number"),
    version("parent_version"),
    version("candidate_version"),
    one_of("state", CycleState),
    one_of("outcome", Outcome),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint(
        "(state = 'finished') = (outcome IS NOT NULL) AND (state = 'finished') = (reason IS NOT NULL)",
        name="finished_has_outcome",
    ),
    Index("ix_cycles_run_id_state", "run_id", "state"),
)

scenarios = Table(
    "scenarios",
    metadata,
    run_id(),
    *cycle(),
    Column("position", Integer, nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("side", String(16), nullable=False),
    Column("family", String(128), nullable=False),
    Column("pack", String(128), nullable=False),
    Column("template", String(256), nullable=False),
    Column("messages", PortableJson, nullable=False),
    Column("guidance", PortableText),
    Column("target", PortableText),
    Column("rule", PortableJson, nullable=False),
    Column("source", String(16), nullable=False, server_default="template"),
    Column("num_constraints", Integer, nullable=False, server_default="1"),
    Column("provenance", PortableText),
    Column("evidence", PortableText),
    PrimaryKeyConstraint("run_id", "cycle", "position"),
    UniqueConstraint("run_id", "cycle", "content_hash"),
    one_of("side", Side),
    one_of("source", Source),
    Index("ix_scenarios_run_id_content_hash", "run_id", "content_hash"),
)


def _of_scenario() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["run_id", "cycle", "scenario_hash"],
        ["scenarios.run_id", "scenarios.cycle", "scenarios.content_hash"],
    )


completions = Table(
    "completions",
    metadata,
    run_id(),
    Column("cycle", Integer, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("scenario_hash", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("temperature", Double, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("sample", Integer, nullable=False),
    Column("policy_version", String(128), nullable=False),
    Column("prompt_token_ids", PortableJson, nullable=False),
    Column("token_ids", PortableJson, nullable=False),
    Column("text", PortableText, nullable=False),
    Column("mean_logprob", Double, nullable=False),
    Column("finish_reason", String(32), nullable=False),
    Column("passed", Boolean),
    Column("score", Double),
    Column("judge_reason", PortableText),
    Column("judge", String(16)),
    PrimaryKeyConstraint("run_id", "cycle", "ordinal"),
    _of_scenario(),
    version("policy_version"),
    one_of("kind", CompletionKind),
    Index("ix_completions_scenario", "run_id", "cycle", "scenario_hash"),
)


def _completion_of(column: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["run_id", "cycle", column], ["completions.run_id", "completions.cycle", "completions.ordinal"]
    )


examples = Table(
    "examples",
    metadata,
    run_id(),
    Column("cycle", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("scenario_hash", String(64), nullable=False),
    Column("side", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("chosen_source", String(16), nullable=False),
    Column("policy_version", String(128), nullable=False),
    Column("prompt_token_ids", PortableJson, nullable=False),
    Column("chosen_token_ids", PortableJson, nullable=False),
    Column("chosen_text", PortableText, nullable=False),
    Column("chosen_ordinal", Integer),
    Column("rejected_token_ids", PortableJson, nullable=False),
    Column("rejected_text", PortableText),
    Column("rejected_ordinal", Integer),
    Column("chosen_logprob", Double),
    Column("rejected_logprob", Double),
    PrimaryKeyConstraint("run_id", "cycle", "position"),
    UniqueConstraint("run_id", "cycle", "content_hash"),
    _of_scenario(),
    _completion_of("chosen_ordinal"),
    _completion_of("rejected_ordinal"),
    one_of("side", Side),
    one_of("kind", ExampleKind),
    one_of("chosen_source", ChosenSource),
    CheckConstraint("(kind = 'pair') = (rejected_text IS NOT NULL)", name="pair_has_rejected"),
    Index("ix_examples_run_id_content_hash", "run_id", "content_hash"),
)

steps = Table(
    "steps",
    metadata,
    run_id(),
    *cycle(),
    Column("objective", String(32), nullable=False),
    Column("optimizer", String(32), nullable=False),
    Column("lr", Double, nullable=False),
    Column("loss", Double, nullable=False),
    Column("nll", Double, nullable=False),
    Column("odds_loss", Double, nullable=False),
    Column("chosen_logprob", Double, nullable=False),
    Column("rejected_logprob", Double),
    Column("log_odds", Double),
    Column("margin", Double),
    Column("grad_norm", Double, nullable=False),
    Column("update_rms", Double, nullable=False),
    Column("update_rms_over_lr", Double, nullable=False),
    Column("num_examples", Integer, nullable=False),
    Column("num_pairs", Integer, nullable=False),
    Column("num_tokens", Integer, nullable=False),
    Column("seconds", PortableJson, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
    Column("phase", Integer),
    Column("precision", String(32)),
    Column("update_cosine", Double),
    Column("bf16_changed", Double),
    Column("peak_memory_bytes", BigInteger),
    Column("reference_version", String(128)),
    PrimaryKeyConstraint("run_id", "cycle"),
)

lr_changes = Table(
    "lr_changes",
    metadata,
    run_id(),
    *cycle(),
    Column("previous_lr", Double),
    Column("lr", Double, nullable=False),
    Column("previous_objective", String(32)),
    Column("objective", String(32), nullable=False),
    Column("phase", Integer, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("run_id", "cycle"),
    one_of("reason", ChangeReason),
    CheckConstraint(
        "(reason = 'first step') = (previous_lr IS NULL) AND (previous_lr IS NULL) = (previous_objective IS NULL)",
        name="first_step_has_no_previous",
    ),
)

events = Table(
    "events",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    *cycle(nullable=True),
    Column("level", String(16), nullable=False),
    Column("name", String(128), nullable=False),
    Column("payload", PortableJson, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    one_of("level", EVENT_LEVELS),
    Index("ix_events_run_id_cycle", "run_id", "cycle"),
)
