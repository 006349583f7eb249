"""The columns of the views that the migrations make; apart from `tables.metadata`, which holds tables only."""

from __future__ import annotations

from sqlalchemy import Column, Double, Integer, MetaData, String, Table

from daemon.storage.column_types import UtcDateTime

views = MetaData()

cycle_summary = Table(
    "cycle_summary",
    views,
    Column("run", String),
    Column("cycle", Integer),
    Column("state", String),
    Column("outcome", String),
    Column("reason", String),
    Column("parent", String),
    Column("candidate", String),
    Column("num_scenarios", Integer),
    Column("num_completions", Integer),
    Column("num_judged", Integer),
    Column("num_passed", Integer),
    Column("num_pairs", Integer),
    Column("num_chosen_only", Integer),
    Column("objective", String),
    Column("lr", Double),
    Column("loss", Double),
    Column("chosen_logprob", Double),
    Column("rejected_logprob", Double),
    Column("margin", Double),
    Column("held_out_nll", Double),
    Column("held_out_nll_vs_base", Double),
    Column("accept_rate", Double),
    Column("push_back_rate", Double),
    Column("decision", String),
    Column("engine_logprob_diff", Double),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
)

lineage = Table(
    "lineage",
    views,
    Column("run", String),
    Column("depth", Integer),
    Column("version", String),
    Column("cycle", Integer),
    Column("parent", String),
)

learned = Table(
    "learned",
    views,
    Column("run", String),
    Column("cycle", Integer),
    Column("outcome", String),
    Column("finished_at", UtcDateTime),
    Column("source", String),
    Column("pack", String),
    Column("family", String),
    Column("template", String),
    Column("side", String),
    Column("num_constraints", Integer),
    Column("provenance", String),
    Column("prompt", String),
    Column("chosen_source", String),
    Column("chosen_text", String),
    Column("rejected_text", String),
    Column("evidence", String),
    Column("candidate", String),
)
