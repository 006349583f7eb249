"""Where scenarios come from, what was refused and why, fingerprints against near-duplicates, imported sources.

Scenarios planned before this revision came from templates or the general tasks, and rules judged every completion;
their rows are completed. The fingerprints of what is spent already are made when a process next takes a run over:
that needs more than SQL, so `runs.fingerprinted` says whether it is done.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UTC = sa.DateTime(timezone=True)

SOURCES = "source IN ('template', 'general', 'dream', 'conversation')"
LAST_MESSAGE = {"sqlite": "json_extract(s.messages, '$[#-1].content')", "postgresql": "s.messages -> -1 ->> 'content'"}

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
LEFT JOIN base_nll ON base_nll.run_id = c.run_id
LEFT JOIN pass_rate accept
    ON accept.run_id = c.run_id AND accept.version = c.candidate_version AND accept.probe = 'accept'
LEFT JOIN pass_rate push_back
    ON push_back.run_id = c.run_id AND push_back.version = c.candidate_version AND push_back.probe = 'push_back'
"""

LEARNED = """
CREATE VIEW learned AS
SELECT
    r.name AS run,
    e.cycle,
    c.outcome,
    c.finished_at,
    s.source,
    s.pack,
    s.family,
    s.template,
    s.side,
    s.num_constraints,
    s.provenance,
    {last_message} AS prompt,
    e.chosen_source,
    e.chosen_text,
    e.rejected_text,
    s.evidence,
    c.candidate_version AS candidate
FROM examples e
JOIN runs r ON r.id = e.run_id
JOIN cycles c ON c.run_id = e.run_id AND c.number = e.cycle
JOIN steps st ON st.run_id = e.run_id AND st.cycle = e.cycle
JOIN scenarios s ON s.run_id = e.run_id AND s.cycle = e.cycle AND s.content_hash = e.scenario_hash
"""


def upgrade() -> None:
    op.execute("DROP VIEW cycle_summary")
    add_columns()
    create_fingerprints()
    create_sources()
    op.create_table(
        "refusals",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("pack", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("provenance", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", UTC, nullable=False),
        sa.CheckConstraint(SOURCES, name=op.f("ck_refusals_source")),
        sa.CheckConstraint(
            "reason IN ('repeated', 'near_duplicate', 'malformed', 'senseless', 'secret', 'too_long')",
            name=op.f("ck_refusals_reason"),
        ),
        sa.CheckConstraint("reason <> 'secret' OR text = ''", name=op.f("ck_refusals_a_secret_is_kept_nowhere")),
        *of_cycle("refusals"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusals")),
    )
    op.create_index("ix_refusals_run_id_cycle", "refusals", ["run_id", "cycle"], unique=False)
    op.create_table(
        "batch_diversity",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("num_accept", sa.Integer(), nullable=False),
        sa.Column("num_push_back", sa.Integer(), nullable=False),
        sa.Column("num_general", sa.Integer(), nullable=False),
        sa.Column("general_share", sa.Double(), nullable=False),
        sa.Column("num_families", sa.Integer(), nullable=False),
        sa.Column("mean_constraints", sa.Double(), nullable=False),
        sa.Column("prompt_distinct_2", sa.Double(), nullable=False),
        sa.Column("chosen_distinct_2", sa.Double(), nullable=False),
        sa.Column("mean_jaccard", sa.Double(), nullable=False),
        *of_cycle("batch_diversity"),
        sa.PrimaryKeyConstraint("run_id", "cycle", name=op.f("pk_batch_diversity")),
    )
    op.execute(CYCLE_SUMMARY)
    op.execute(LEARNED.format(last_message=LAST_MESSAGE[op.get_bind().dialect.name]))


def add_columns() -> None:
    op.add_column("runs", sa.Column("fingerprinted", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.execute(sa.text("UPDATE runs SET fingerprinted = :no").bindparams(sa.bindparam("no", False, sa.Boolean())))
    source = sa.CheckConstraint(SOURCES, name=op.f("ck_scenarios_source"))
    op.add_column(
        "scenarios", sa.Column("source", sa.String(length=16), source, nullable=False, server_default="template")
    )
    op.add_column("scenarios", sa.Column("num_constraints", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("scenarios", sa.Column("provenance", sa.Text(), nullable=True))
    op.add_column("scenarios", sa.Column("evidence", sa.Text(), nullable=True))
    op.execute("UPDATE scenarios SET source = 'general' WHERE side = 'general' AND pack = 'general'")
    op.add_column("completions", sa.Column("judge", sa.String(length=16), nullable=True))
    op.execute("UPDATE completions SET judge = 'rules' WHERE passed IS NOT NULL")


def create_fingerprints() -> None:
    op.create_table(
        "fingerprints",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=True),
        sa.Column("shingles", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("kind IN ('spent', 'quarantined', 'held_out')", name=op.f("ck_fingerprints_kind")),
        sa.CheckConstraint("(kind = 'held_out') = (cycle IS NULL)", name=op.f("ck_fingerprints_held_out_has_no_cycle")),
        *of_cycle("fingerprints"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fingerprints")),
        sa.UniqueConstraint("run_id", "content_hash", name=op.f("uq_fingerprints_run_id_content_hash")),
    )
    op.create_index("ix_fingerprints_run_id_cycle", "fingerprints", ["run_id", "cycle"], unique=False)
    op.create_table(
        "fingerprint_bands",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("band_key", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["fingerprint_id"], ["fingerprints.id"], name=op.f("fk_fingerprint_bands_fingerprint_id")
        ),
        sa.PrimaryKeyConstraint("run_id", "band_key", "fingerprint_id", name=op.f("pk_fingerprint_bands")),
        sqlite_with_rowid=False,
    )


def create_sources() -> None:
    op.create_table(
        "sources",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("tail_digest", sa.String(length=128), nullable=False),
        sa.Column("found", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("registered_at", UTC, nullable=False),
        sa.Column("approved_at", UTC, nullable=True),
        sa.CheckConstraint("kind IN ('replay', 'conversation')", name=op.f("ck_sources_kind")),
        sa.CheckConstraint("state IN ('pending', 'approved')", name=op.f("ck_sources_state")),
        sa.CheckConstraint(
            "(state = 'approved') = (approved_at IS NOT NULL)", name=op.f("ck_sources_approved_at_some_time")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_sources_run_id")),
        sa.PrimaryKeyConstraint("run_id", "name", name=op.f("pk_sources")),
    )
    op.create_table(
        "source_reads",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("from_position", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("tail_digest", sa.String(length=128), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("used", sa.Boolean(), nullable=False),
        sa.CheckConstraint("position >= from_position", name=op.f("ck_source_reads_forwards")),
        *of_cycle("source_reads"),
        sa.ForeignKeyConstraint(
            ["run_id", "name"], ["sources.run_id", "sources.name"], name=op.f("fk_source_reads_run_id_name")
        ),
        sa.PrimaryKeyConstraint("run_id", "cycle", "name", name=op.f("pk_source_reads")),
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
