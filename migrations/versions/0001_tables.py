"""The first schema: runs, cycles and everything they record.

Timestamps are UTC. Keys are natural ones, so that people can read the tables with plain SQL.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UTC = sa.DateTime(timezone=True)
# SQLite's REAL affinity drops the sign of -0.0; BLOB affinity stores the double as given.
EXACT_FLOAT = sa.Double().with_variant(sa.BLOB(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("dreamd_version", sa.String(length=64), nullable=False),
        sa.Column("model_path", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("head_version", sa.String(length=128), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("name", name=op.f("uq_runs_name")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("parent_version", sa.String(length=128), nullable=True),
        sa.Column("batch_hash", sa.String(length=64), nullable=True),
        sa.Column("root_hash", sa.String(length=128), nullable=False),
        sa.Column("weights_digest", sa.String(length=128), nullable=False),
        sa.Column("optimizer_digest", sa.String(length=128), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.CheckConstraint(
            "state IN ('base', 'candidate', 'promoted', 'rejected', 'pruned')", name=op.f("ck_checkpoints_state")
        ),
        sa.CheckConstraint("(parent_version IS NULL) = (cycle IS NULL)", name=op.f("ck_checkpoints_base_has_no_cycle")),
        sa.ForeignKeyConstraint(
            ["run_id", "parent_version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_checkpoints_run_id_parent_version"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id")),
        sa.PrimaryKeyConstraint("run_id", "version", name=op.f("pk_checkpoints")),
    )
    op.create_index("ix_checkpoints_run_id_cycle", "checkpoints", ["run_id", "cycle"], unique=False)
    op.create_index(
        "uq_checkpoints_base",
        "checkpoints",
        ["run_id"],
        unique=True,
        sqlite_where=sa.text("parent_version IS NULL"),
        postgresql_where=sa.text("parent_version IS NULL"),
    )
    op.create_table(
        "cycles",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("parent_version", sa.String(length=128), nullable=False),
        sa.Column("candidate_version", sa.String(length=128), nullable=True),
        sa.Column("batch_hash", sa.String(length=64), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.Column("started_at", UTC, nullable=False),
        sa.Column("finished_at", UTC, nullable=True),
        sa.CheckConstraint(
            "(state = 'finished') = (outcome IS NOT NULL) AND (state = 'finished') = (reason IS NOT NULL)",
            name=op.f("ck_cycles_finished_has_outcome"),
        ),
        sa.CheckConstraint(
            "outcome IN ('promoted', 'rolled_back', 'skipped', 'abandoned', 'lost', 'failed')",
            name=op.f("ck_cycles_outcome"),
        ),
        sa.CheckConstraint(
            "state IN ('planned', 'swept', 'paired', 'claimed', 'stepped', 'published', 'probed', 'finished')",
            name=op.f("ck_cycles_state"),
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_cycles_number")),
        sa.ForeignKeyConstraint(
            ["run_id", "candidate_version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_cycles_run_id_candidate_version"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "parent_version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_cycles_run_id_parent_version"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_cycles_run_id")),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_cycles")),
    )
    op.create_index("ix_cycles_run_id_state", "cycles", ["run_id", "state"], unique=False)
    op.create_table(
        "claims",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("claimed_at", UTC, nullable=False),
        sa.CheckConstraint("(kind = 'held_out') = (cycle IS NULL)", name=op.f("ck_claims_held_out_has_no_cycle")),
        sa.CheckConstraint("kind IN ('scenario', 'example', 'held_out')", name=op.f("ck_claims_kind")),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_claims_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_claims_run_id")),
        sa.PrimaryKeyConstraint("run_id", "content_hash", name=op.f("pk_claims")),
    )
    op.create_index("ix_claims_run_id_cycle", "claims", ["run_id", "cycle"], unique=False)
    op.create_table(
        "engine_checks",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("policy_version", sa.String(length=128), nullable=False),
        sa.Column("engine", sa.String(length=32), nullable=False),
        sa.Column("mean_abs_diff", sa.Double(), nullable=True),
        sa.Column("max_abs_diff", sa.Double(), nullable=True),
        sa.Column("num_tokens", sa.Integer(), nullable=False),
        sa.Column("tolerance", sa.Double(), nullable=False),
        sa.Column("weights_match", sa.Boolean(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("checked_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_engine_checks_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "policy_version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_engine_checks_run_id_policy_version"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_engine_checks_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_engine_checks")),
    )
    op.create_index("ix_engine_checks_run_id_cycle", "engine_checks", ["run_id", "cycle"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("at", UTC, nullable=False),
        sa.CheckConstraint("level IN ('debug', 'info', 'warning', 'error')", name=op.f("ck_events_level")),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_events_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_events_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_run_id_cycle", "events", ["run_id", "cycle"], unique=False)
    op.create_table(
        "probe_results",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("probe", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=256), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("value", EXACT_FLOAT, nullable=True),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("measured_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_probe_results_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_probe_results_run_id_version"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_probe_results_run_id")),
        sa.PrimaryKeyConstraint("run_id", "version", "probe", "item", name=op.f("pk_probe_results")),
    )
    op.create_table(
        "rollbacks",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("from_version", sa.String(length=128), nullable=False),
        sa.Column("to_version", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("rolled_back_at", UTC, nullable=False),
        sa.Column("verified_at", UTC, nullable=True),
        sa.Column("verification", sa.JSON(), nullable=True),
        sa.CheckConstraint("(cause = 'watchdog') = (cycle IS NOT NULL)", name=op.f("ck_rollbacks_watchdog_has_cycle")),
        sa.CheckConstraint("cause IN ('watchdog', 'operator')", name=op.f("ck_rollbacks_cause")),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_rollbacks_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "from_version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_rollbacks_run_id_from_version"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "to_version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_rollbacks_run_id_to_version"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_rollbacks_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollbacks")),
    )
    op.create_index("ix_rollbacks_run_id_cycle", "rollbacks", ["run_id", "cycle"], unique=False)
    op.create_table(
        "scenarios",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("side", sa.String(length=16), nullable=False),
        sa.Column("family", sa.String(length=128), nullable=False),
        sa.Column("pack", sa.String(length=128), nullable=False),
        sa.Column("template", sa.String(length=256), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("guidance", sa.Text(), nullable=True),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("rule", sa.JSON(), nullable=False),
        sa.CheckConstraint("side IN ('accept', 'push_back', 'general')", name=op.f("ck_scenarios_side")),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_scenarios_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_scenarios_run_id")),
        sa.PrimaryKeyConstraint("run_id", "cycle", "position", name=op.f("pk_scenarios")),
        sa.UniqueConstraint("run_id", "cycle", "content_hash", name=op.f("uq_scenarios_run_id_cycle_content_hash")),
    )
    op.create_index("ix_scenarios_run_id_content_hash", "scenarios", ["run_id", "content_hash"], unique=False)
    op.create_table(
        "steps",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("objective", sa.String(length=32), nullable=False),
        sa.Column("optimizer", sa.String(length=32), nullable=False),
        sa.Column("lr", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("nll", sa.Double(), nullable=False),
        sa.Column("odds_loss", sa.Double(), nullable=False),
        sa.Column("chosen_logprob", sa.Double(), nullable=False),
        sa.Column("rejected_logprob", sa.Double(), nullable=True),
        sa.Column("log_odds", sa.Double(), nullable=True),
        sa.Column("margin", sa.Double(), nullable=True),
        sa.Column("grad_norm", sa.Double(), nullable=False),
        sa.Column("update_rms", sa.Double(), nullable=False),
        sa.Column("update_rms_over_lr", sa.Double(), nullable=False),
        sa.Column("num_examples", sa.Integer(), nullable=False),
        sa.Column("num_pairs", sa.Integer(), nullable=False),
        sa.Column("num_tokens", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.Column("recorded_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_steps_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_steps_run_id")),
        sa.PrimaryKeyConstraint("run_id", "cycle", name=op.f("pk_steps")),
    )
    op.create_table(
        "verdicts",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("target", sa.String(length=16), nullable=True),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("decided_at", UTC, nullable=False),
        sa.CheckConstraint(
            "(decision = 'roll_back') = (target IS NOT NULL)", name=op.f("ck_verdicts_rollback_has_target")
        ),
        sa.CheckConstraint("decision IN ('promote', 'roll_back')", name=op.f("ck_verdicts_decision")),
        sa.CheckConstraint("target IN ('parent', 'a1', 'a0')", name=op.f("ck_verdicts_target")),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_verdicts_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_verdicts_run_id")),
        sa.PrimaryKeyConstraint("run_id", "cycle", name=op.f("pk_verdicts")),
    )
    op.create_table(
        "completions",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("scenario_hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("policy_version", sa.String(length=128), nullable=False),
        sa.Column("prompt_token_ids", sa.JSON(), nullable=False),
        sa.Column("token_ids", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("mean_logprob", sa.Double(), nullable=False),
        sa.Column("finish_reason", sa.String(length=32), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("judge_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('sweep', 'guided')", name=op.f("ck_completions_kind")),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle", "scenario_hash"],
            ["scenarios.run_id", "scenarios.cycle", "scenarios.content_hash"],
            name=op.f("fk_completions_run_id_cycle_scenario_hash"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "policy_version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_completions_run_id_policy_version"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_completions_run_id")),
        sa.PrimaryKeyConstraint("run_id", "cycle", "ordinal", name=op.f("pk_completions")),
    )
    op.create_index("ix_completions_scenario", "completions", ["run_id", "cycle", "scenario_hash"], unique=False)
    op.create_table(
        "examples",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("scenario_hash", sa.String(length=64), nullable=False),
        sa.Column("side", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("chosen_source", sa.String(length=16), nullable=False),
        sa.Column("policy_version", sa.String(length=128), nullable=False),
        sa.Column("prompt_token_ids", sa.JSON(), nullable=False),
        sa.Column("chosen_token_ids", sa.JSON(), nullable=False),
        sa.Column("chosen_text", sa.Text(), nullable=False),
        sa.Column("chosen_ordinal", sa.Integer(), nullable=True),
        sa.Column("rejected_token_ids", sa.JSON(), nullable=False),
        sa.Column("rejected_text", sa.Text(), nullable=True),
        sa.Column("rejected_ordinal", sa.Integer(), nullable=True),
        sa.Column("chosen_logprob", sa.Double(), nullable=True),
        sa.Column("rejected_logprob", sa.Double(), nullable=True),
        sa.CheckConstraint("(kind = 'pair') = (rejected_text IS NOT NULL)", name=op.f("ck_examples_pair_has_rejected")),
        sa.CheckConstraint(
            "chosen_source IN ('exploration', 'guided', 'target')", name=op.f("ck_examples_chosen_source")
        ),
        sa.CheckConstraint("kind IN ('pair', 'chosen_only')", name=op.f("ck_examples_kind")),
        sa.CheckConstraint("side IN ('accept', 'push_back', 'general')", name=op.f("ck_examples_side")),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle", "chosen_ordinal"],
            ["completions.run_id", "completions.cycle", "completions.ordinal"],
            name=op.f("fk_examples_run_id_cycle_chosen_ordinal"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle", "rejected_ordinal"],
            ["completions.run_id", "completions.cycle", "completions.ordinal"],
            name=op.f("fk_examples_run_id_cycle_rejected_ordinal"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle", "scenario_hash"],
            ["scenarios.run_id", "scenarios.cycle", "scenarios.content_hash"],
            name=op.f("fk_examples_run_id_cycle_scenario_hash"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_examples_run_id")),
        sa.PrimaryKeyConstraint("run_id", "cycle", "position", name=op.f("pk_examples")),
        sa.UniqueConstraint("run_id", "cycle", "content_hash", name=op.f("uq_examples_run_id_cycle_content_hash")),
    )
    op.create_index("ix_examples_run_id_content_hash", "examples", ["run_id", "content_hash"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("there is nothing before the first schema")
