"""Training phases: a step's phase, precision and effective update, and why the learning rate changed.

Steps made before this revision were all of one phase, on fp32 weights, and only a change of the configuration could
change their learning rate, so their rows are completed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UTC = sa.DateTime(timezone=True)

STEP_COLUMNS = (
    ("phase", sa.Integer()),
    ("precision", sa.String(length=32)),
    ("update_cosine", sa.Double()),
    ("bf16_changed", sa.Double()),
    ("peak_memory_bytes", sa.BigInteger()),
    ("reference_version", sa.String(length=128)),
)

EARLIER_CHANGES = """
INSERT INTO lr_changes
    (run_id, cycle, previous_lr, lr, previous_objective, objective, phase, reason, changed_at)
SELECT run_id, cycle, previous_lr, lr, previous_objective, objective, 1,
    CASE WHEN previous_lr IS NULL THEN 'first step' ELSE 'configuration' END, recorded_at
FROM (
    SELECT run_id, cycle, lr, objective, recorded_at,
        LAG(lr) OVER (PARTITION BY run_id ORDER BY cycle) AS previous_lr,
        LAG(objective) OVER (PARTITION BY run_id ORDER BY cycle) AS previous_objective
    FROM steps
) AS stepped
WHERE previous_lr IS NULL OR previous_lr <> lr OR previous_objective <> objective
"""

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
base_nll AS (
    SELECT b.run_id, nll.mean
    FROM checkpoints b
    JOIN nll ON nll.run_id = b.run_id AND nll.version = b.version
    WHERE b.parent_version IS NULL
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
    nll.mean - base_nll.mean AS held_out_nll_vs_base,
    accept.rate AS accept_rate,
    push_back.rate AS push_back_rate,
    v.decision,
    (SELECT k.mean_abs_diff FROM engine_checks k
     WHERE k.run_id = c.run_id AND k.cycle = c.number
     ORDER BY CASE WHEN k.policy_version = c.candidate_version THEN 0 ELSE 1 END, k.id DESC
     LIMIT 1) AS engine_logprob_diff,
    c.started_at,
    c.finished_at
FROM cycles c
JOIN runs r ON r.id = c.run_id
LEFT JOIN steps st ON st.run_id = c.run_id AND st.cycle = c.number
LEFT JOIN verdicts v ON v.run_id = c.run_id AND v.cycle = c.number
LEFT JOIN nll ON nll.run_id = c.run_id AND nll.version = c.candidate_version
LEFT JOIN base_nll ON base_nll.run_id = c.run_id
LEFT JOIN pass_rate accept
    ON accept.run_id = c.run_id AND accept.version = c.candidate_version AND accept.probe = 'accept'
LEFT JOIN pass_rate push_back
    ON push_back.run_id = c.run_id AND push_back.version = c.candidate_version AND push_back.probe = 'push_back'
"""


def upgrade() -> None:
    for name, kind in STEP_COLUMNS:
        op.add_column("steps", sa.Column(name, kind, nullable=True))
    op.execute("UPDATE steps SET phase = 1, precision = 'fp32'")
    op.create_table(
        "lr_changes",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("previous_lr", sa.Double(), nullable=True),
        sa.Column("lr", sa.Double(), nullable=False),
        sa.Column("previous_objective", sa.String(length=32), nullable=True),
        sa.Column("objective", sa.String(length=32), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("changed_at", UTC, nullable=False),
        sa.CheckConstraint(
            "(reason = 'first step') = (previous_lr IS NULL) AND (previous_lr IS NULL) = (previous_objective IS NULL)",
            name=op.f("ck_lr_changes_first_step_has_no_previous"),
        ),
        sa.CheckConstraint(
            "reason IN ('first step', 'phase', 'schedule', 'configuration')", name=op.f("ck_lr_changes_reason")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "cycle"], ["cycles.run_id", "cycles.number"], name=op.f("fk_lr_changes_run_id_cycle")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_lr_changes_run_id")),
        sa.PrimaryKeyConstraint("run_id", "cycle", name=op.f("pk_lr_changes")),
    )
    op.execute(EARLIER_CHANGES)
    op.execute("DROP VIEW cycle_summary")
    op.execute(CYCLE_SUMMARY)


def downgrade() -> None:
    raise NotImplementedError("restore a backup from before `dreamd db upgrade`: the new columns hold what happened")
