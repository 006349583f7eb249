"""The tables of the watchdog: what was measured, what was decided and why, and what follows from it."""

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

from daemon.domain.states import (
    BreakerState,
    Decision,
    GovernorRule,
    Knob,
    ProbeReason,
    RollbackCause,
    RollbackTarget,
)
from daemon.storage.column_types import ExactFloat, PortableJson, PortableText, UtcDateTime
from daemon.storage.schema import ROW_ID, cycle, metadata, one_of, run_id, version

probe_runs = Table(
    "probe_runs",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    *cycle(nullable=True),
    Column("version", String(128), nullable=False),
    Column("probe", String(64), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("suite_version", String(128), nullable=False),
    Column("num_items", Integer, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("skipped", PortableText),
    Column("measured_at", UtcDateTime, nullable=False),
    version("version"),
    one_of("reason", ProbeReason),
    Index("ix_probe_runs_run_id_cycle", "run_id", "cycle"),
    Index("ix_probe_runs_run_id_probe", "run_id", "probe"),
)

engine_checks = Table(
    "engine_checks",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    *cycle(nullable=True),
    Column("policy_version", String(128), nullable=False),
    Column("engine", String(32), nullable=False),
    Column("mean_abs_diff", Double),
    Column("max_abs_diff", Double),
    Column("num_tokens", Integer, nullable=False),
    Column("tolerance", Double, nullable=False),
    Column("weights_match", Boolean, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("checked_at", UtcDateTime, nullable=False),
    version("policy_version"),
    Index("ix_engine_checks_run_id_cycle", "run_id", "cycle"),
)

probe_results = Table(
    "probe_results",
    metadata,
    run_id(),
    Column("version", String(128), nullable=False),
    Column("probe", String(64), nullable=False),
    Column("item", String(256), nullable=False),
    *cycle(nullable=True),
    Column("value", ExactFloat),
    Column("passed", Boolean),
    Column("detail", PortableJson, nullable=False),
    Column("measured_at", UtcDateTime, nullable=False),
    Column("probe_run_id", BigInteger),  # no foreign key: SQLite adds no named one to a table that exists
    PrimaryKeyConstraint("run_id", "version", "probe", "item"),
    version("version"),
)

verdicts = Table(
    "verdicts",
    metadata,
    run_id(),
    *cycle(),
    Column("decision", String(16), nullable=False),
    Column("reason", PortableText, nullable=False),
    Column("target", String(16)),
    Column("evidence", PortableJson, nullable=False),
    Column("decided_at", UtcDateTime, nullable=False),
    Column("to_version", String(128)),  # no foreign key, likewise
    Column("last_probe_run", BigInteger),
    PrimaryKeyConstraint("run_id", "cycle"),
    one_of("decision", Decision),
    one_of("target", RollbackTarget),
    CheckConstraint("(decision = 'roll_back') = (target IS NOT NULL)", name="rollback_has_target"),
)

rollbacks = Table(
    "rollbacks",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    *cycle(nullable=True),
    Column("cause", String(16), nullable=False),
    Column("from_version", String(128), nullable=False),
    Column("to_version", String(128), nullable=False),
    Column("reason", PortableText, nullable=False),
    Column("evidence", PortableJson, nullable=False),
    Column("rolled_back_at", UtcDateTime, nullable=False),
    Column("verified_at", UtcDateTime),
    Column("verification", PortableJson),
    Column("after_cycle", Integer),
    version("from_version"),
    version("to_version"),
    one_of("cause", RollbackCause),
    CheckConstraint("(cause = 'watchdog') = (cycle IS NOT NULL)", name="watchdog_has_cycle"),
    Index("ix_rollbacks_run_id_cycle", "run_id", "cycle"),
)

breaker_changes = Table(
    "breaker_changes",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    Column("cycle", Integer, nullable=False),  # no foreign key: 0 before the first cycle
    Column("state", String(16), nullable=False),
    Column("reason", PortableText, nullable=False),
    Column("num_openings", Integer, nullable=False),
    Column("until", UtcDateTime),
    Column("acknowledged", Boolean, nullable=False),
    Column("evidence", PortableJson, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    one_of("state", BreakerState),
    Index("ix_breaker_changes_run_id", "run_id"),
)

governor_decisions = Table(
    "governor_decisions",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    run_id(),
    *cycle(),
    Column("rule", String(32), nullable=False),
    Column("knob", String(32), nullable=False),
    Column("from_value", PortableJson),
    Column("to_value", PortableJson),
    Column("until_cycle", Integer),
    Column("applied", Boolean, nullable=False),
    Column("reason", PortableText, nullable=False),
    Column("evidence", PortableJson, nullable=False),
    Column("decided_at", UtcDateTime, nullable=False),
    one_of("rule", GovernorRule),
    one_of("knob", Knob),
    Index("ix_governor_decisions_run_id_cycle", "run_id", "cycle"),
)

resting_families = Table(
    "resting_families",
    metadata,
    run_id(),
    *cycle(),
    Column("pack", String(128), nullable=False),
    Column("family", String(128), nullable=False),
    Column("until_cycle", Integer, nullable=False),
    PrimaryKeyConstraint("run_id", "cycle", "pack", "family"),
)
