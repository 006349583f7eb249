"""What the watchdog measured and when, the breaker, the governor, resting families; what each verdict could see.

Rows of an earlier revision stay as they are: their measurements belong to no probe run. A rollback's `after_cycle`
is filled in: by its cycle, or for an operator's by the newest cycle that had started by then. When files were
pruned was not recorded: they count as there until now. `cycle_summary` compares with the base item by item.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UTC = sa.DateTime(timezone=True)


CYCLE_SUMMARY = """
CREATE VIEW cycle_summary AS
WITH nll AS (
    SELECT run_id, version, AVG(CAST(value AS DOUBLE PRECISION)) AS mean
    FROM probe_results
    WHERE probe = 'nll'
    GROUP BY run_id, version
),
pass_rate AS (
    SELECT run_id, version, probe, CAST(AVG(CASE WHEN passed THEN 1.0 ELSE 0.0 END) AS DOUBLE PRECISION) AS rate
    FROM probe_results
    WHERE probe IN ('accept', 'push_back') AND passed IS NOT NULL
    GROUP BY run_id, version, probe
),
-- Item by item: a mean over items that the base lacks says nothing beside the base's.
nll_vs_base AS (
    SELECT n.run_id, n.version,
        AVG(CAST(n.value AS DOUBLE PRECISION) - CAST(b.value AS DOUBLE PRECISION)) AS difference
    FROM probe_results n
    JOIN checkpoints k ON k.run_id = n.run_id AND k.parent_version IS NULL
    JOIN probe_results b ON b.run_id = n.run_id AND b.version = k.version AND b.probe = n.probe AND b.item = n.item
    WHERE n.probe = 'nll'
    GROUP BY n.run_id, n.version
)
SELECT
    r.name AS run,
    c.number AS cycle,
    c.state,
    c.outcome,
    c.reason,
    c.parent_version AS parent,
    c.candidate_version AS candidate,
    (SELECT COUNT(*) FROM scenarios s WHERE s.run_id = c.run_id AND s.cycle = c.number) AS num_scenarios,
    (SELECT COUNT(*) FROM completions o WHERE o.run_id = c.run_id AND o.cycle = c.number) AS num_completions,
    -- Guided answers are no measure of the policy: only what it says unprompted counts as judged and passed.
    (SELECT COUNT(o.passed) FROM completions o
     WHERE o.run_id = c.run_id AND o.cycle = c.number AND o.kind = 'sweep') AS num_judged,
    (SELECT COUNT(*) FROM completions o
     WHERE o.run_id = c.run_id AND o.cycle = c.number AND o.kind = 'sweep' AND o.passed) AS num_passed,
    (SELECT COUNT(*) FROM examples e
     WHERE e.run_id = c.run_id AND e.cycle = c.number AND e.kind = 'pair') AS num_pairs,
    (SELECT COUNT(*) FROM examples e
     WHERE e.run_id = c.run_id AND e.cycle = c.number AND e.kind = 'chosen_only') AS num_chosen_only,
    st.objective,
    st.lr,
    st.loss,
    st.chosen_logprob,
    st.rejected_logprob,
    st.margin,
    nll.mean AS held_out_nll,
    nll_vs_base.difference AS held_out_nll_vs_base,
    accept.rate AS accept_rate,
    push_back.rate AS push_back_rate,
    v.decision,
    -- The candidate's last check, or else the cycle's; SQLite before 3.41 finds no outer column in an ORDER BY.
    CASE WHEN EXISTS (SELECT 1 FROM engine_checks k WHERE k.run_id = c.run_id AND k.cycle = c.number
                      AND k.policy_version = c.candidate_version)
    THEN (SELECT k.mean_abs_diff FROM engine_checks k WHERE k.run_id = c.run_id AND k.cycle = c.number
          AND k.policy_version = c.candidate_version ORDER BY k.id DESC LIMIT 1)
    ELSE (SELECT k.mean_abs_diff FROM engine_checks k WHERE k.run_id = c.run_id AND k.cycle = c.number
          ORDER BY k.id DESC LIMIT 1)
    END AS engine_logprob_diff,
    c.started_at,
    c.finished_at
FROM cycles c
JOIN runs r ON r.id = c.run_id
LEFT JOIN steps st ON st.run_id = c.run_id AND st.cycle = c.number
LEFT JOIN verdicts v ON v.run_id = c.run_id AND v.cycle = c.number
LEFT JOIN nll ON nll.run_id = c.run_id AND nll.version = c.candidate_version
LEFT JOIN nll_vs_base ON nll_vs_base.run_id = c.run_id AND nll_vs_base.version = c.candidate_version
LEFT JOIN pass_rate accept
    ON accept.run_id = c.run_id AND accept.version = c.candidate_version AND accept.probe = 'accept'
LEFT JOIN pass_rate push_back
    ON push_back.run_id = c.run_id AND push_back.version = c.candidate_version AND push_back.probe = 'push_back'
"""


def upgrade() -> None:
    op.execute("DROP VIEW cycle_summary")
    create_probe_runs()
    create_breaker()
    create_governor()
    op.create_table(
        "resting_families",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("pack", sa.String(length=128), nullable=False),
        sa.Column("family", sa.String(length=128), nullable=False),
        sa.Column("until_cycle", sa.Integer(), nullable=False),
        *of_cycle("resting_families"),
        sa.PrimaryKeyConstraint("run_id", "cycle", "pack", "family", name=op.f("pk_resting_families")),
    )
    add_columns()
    op.execute(CYCLE_SUMMARY)


def create_probe_runs() -> None:
    op.create_table(
        "probe_runs",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("probe", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("suite_version", sa.String(length=128), nullable=False),
        sa.Column("num_items", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("skipped", sa.Text(), nullable=True),
        sa.Column("measured_at", UTC, nullable=False),
        sa.CheckConstraint(
            "reason IN ('core', 'scheduled', 'suspicion', 'confirmation', 'anchor', 'evaluation')",
            name=op.f("ck_probe_runs_reason"),
        ),
        *of_cycle("probe_runs"),
        sa.ForeignKeyConstraint(
            ["run_id", "version"],
            ["checkpoints.run_id", "checkpoints.version"],
            name=op.f("fk_probe_runs_run_id_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_probe_runs")),
    )
    op.create_index("ix_probe_runs_run_id_cycle", "probe_runs", ["run_id", "cycle"], unique=False)
    op.create_index("ix_probe_runs_run_id_probe", "probe_runs", ["run_id", "probe"], unique=False)


def create_breaker() -> None:
    op.create_table(
        "breaker_changes",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("num_openings", sa.Integer(), nullable=False),
        sa.Column("until", UTC, nullable=True),
        sa.Column("acknowledged", sa.Boolean(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("changed_at", UTC, nullable=False),
        sa.CheckConstraint("state IN ('closed', 'open', 'half_open')", name=op.f("ck_breaker_changes_state")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_breaker_changes_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_breaker_changes")),
    )
    op.create_index("ix_breaker_changes_run_id", "breaker_changes", ["run_id"], unique=False)


def create_governor() -> None:
    op.create_table(
        "governor_decisions",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("rule", sa.String(length=32), nullable=False),
        sa.Column("knob", sa.String(length=32), nullable=False),
        sa.Column("from_value", sa.JSON(), nullable=True),
        sa.Column("to_value", sa.JSON(), nullable=True),
        sa.Column("until_cycle", sa.Integer(), nullable=True),
        sa.Column("applied", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("decided_at", UTC, nullable=False),
        sa.CheckConstraint(
            "rule IN ('after_rollback', 'chosen_falling', 'too_small', 'too_large')",
            name=op.f("ck_governor_decisions_rule"),
        ),
        sa.CheckConstraint(
            "knob IN ('lr', 'orpo_weight', 'objective', 'scenarios', 'general_fraction', 'favour', 'probes')",
            name=op.f("ck_governor_decisions_knob"),
        ),
        *of_cycle("governor_decisions"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_governor_decisions")),
    )
    op.create_index("ix_governor_decisions_run_id_cycle", "governor_decisions", ["run_id", "cycle"], unique=False)


def add_columns() -> None:
    op.add_column("probe_results", sa.Column("probe_run_id", sa.BigInteger(), nullable=True))
    op.add_column("cycles", sa.Column("adjustments", sa.JSON(), nullable=True))
    op.add_column("checkpoints", sa.Column("pruned_after", sa.Integer(), nullable=True))
    op.add_column("verdicts", sa.Column("to_version", sa.String(length=128), nullable=True))
    op.add_column("verdicts", sa.Column("last_probe_run", sa.BigInteger(), nullable=True))
    op.add_column("rollbacks", sa.Column("after_cycle", sa.Integer(), nullable=True))
    op.execute(
        "UPDATE checkpoints SET pruned_after = COALESCE((SELECT MAX(c.number) FROM cycles c "
        "WHERE c.run_id = checkpoints.run_id AND c.state = 'finished'), 0) WHERE state = 'pruned'"
    )
    op.execute(
        "UPDATE rollbacks SET after_cycle = COALESCE(cycle, (SELECT MAX(c.number) FROM cycles c "
        "WHERE c.run_id = rollbacks.run_id AND c.started_at <= rollbacks.rolled_back_at), 0)"
    )


def of_cycle(table: str) -> tuple[sa.ForeignKeyConstraint, sa.ForeignKeyConstraint]:
    """The keys into `cycles` and `runs` that most tables have."""
    return (
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f(f"fk_{table}_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f(f"fk_{table}_run_id")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup from before `dreamd db upgrade`: the new columns hold what happened")
