"""The views `lineage` and `cycle_summary`, in SQL that SQLite and PostgreSQL both understand."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LINEAGE = """
CREATE VIEW lineage AS
WITH RECURSIVE ancestry (run_id, depth, version, cycle, parent_version) AS (
    SELECT c.run_id, 0, c.version, c.cycle, c.parent_version
    FROM runs r
    JOIN checkpoints c ON c.run_id = r.id AND c.version = r.head_version
    UNION ALL
    SELECT c.run_id, a.depth + 1, c.version, c.cycle, c.parent_version
    FROM ancestry a
    JOIN checkpoints c ON c.run_id = a.run_id AND c.version = a.parent_version
)
SELECT r.name AS run, a.depth, a.version, a.cycle, a.parent_version AS parent
FROM ancestry a
JOIN runs r ON r.id = a.run_id
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
    op.execute(LINEAGE)
    op.execute(CYCLE_SUMMARY)


def downgrade() -> None:
    op.execute("DROP VIEW cycle_summary")
    op.execute("DROP VIEW lineage")
