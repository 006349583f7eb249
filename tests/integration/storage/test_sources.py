"""Imported sources, refusals and diversity: what is recorded with a cycle, and what is used up."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    drive_to,
    make_completion,
    make_diversity,
    make_example,
    make_judgement,
    make_scenario,
    make_step_report,
)
from sqlalchemy import Engine

from daemon.domain.errors import DatabaseError, DreamdError, UsageError
from daemon.domain.records import Cycle, Draw, ImportedSource, Refusal, SourceRead
from daemon.domain.states import CycleState, ImportKind, ImportState, Outcome, RefusalReason, Side, Source
from daemon.storage import queries, tables, views
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run
from daemon.storage.sources import approve_source, list_sources, register_source

LOG = ImportedSource("corrections", ImportKind.CONVERSATION, "/data/corrections.jsonl")
READ = SourceRead("corrections", 0, 900, 12, "digest at 900", {"used": 2, "secret": 1})


def rows(engine: Engine, statement: Any) -> list[tuple[Any, ...]]:
    with reading(engine) as connection:
        return [tuple(row) for row in connection.execute(statement)]


def planned(ledger: SqlLedger, read: SourceRead, name: str = "a correction") -> Cycle:
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
    return ledger.record_plan(cycle, Draw((make_scenario(name),), reads=(read,)))


@pytest.fixture
def log(ledger: SqlLedger, engine: Engine) -> ImportedSource:
    """The approved source `LOG`."""
    register_source(engine, "test", LOG, {"conversation": 50, "malformed": 1})
    return approve_source(engine, "test", LOG.name)


def test_a_source_is_drawn_from_only_when_approved(ledger: SqlLedger, engine: Engine) -> None:
    """Registered it is pending and invisible; approved it is there, from its beginning; doing either twice is fine."""
    assert register_source(engine, "test", LOG, {"conversation": 50}) == LOG
    assert register_source(engine, "test", LOG, {}) == LOG
    assert ledger.sources() == ()
    approved = replace(LOG, state=ImportState.APPROVED)
    assert approve_source(engine, "test", LOG.name) == approve_source(engine, "test", LOG.name) == approved
    assert register_source(engine, "test", LOG, {}) == approved
    assert ledger.sources() == (approved,)
    (shown,) = list_sources(engine, "test")
    assert (shown["name"], shown["state"], shown["found"], shown["counts"]) == (
        "corrections",
        "approved",
        {"conversation": 50},
        {},
    )


def test_a_name_stands_for_one_file(log: ImportedSource, engine: Engine) -> None:
    """Another file or kind of the same name is refused; an unknown name is answered with those known."""
    for other in (replace(LOG, path="/data/other.jsonl"), replace(LOG, kind=ImportKind.REPLAY)):
        with pytest.raises(
            UsageError, match=r"corrections is /data/corrections.jsonl \(conversation\) already; choose"
        ):
            register_source(engine, "test", other, {})
    with pytest.raises(UsageError, match="no source other; there are: corrections"):
        approve_source(engine, "test", "other")
    create_run(engine, "empty", 1, "models/small", {}, [])
    with pytest.raises(UsageError, match="none is imported yet"):
        approve_source(engine, "empty", "corrections")
    assert list_sources(engine, "empty") == []


def test_lines_are_used_up_by_a_claim_and_come_again_after_an_abandoned_cycle(
    ledger: SqlLedger, engine: Engine, log: ImportedSource
) -> None:
    """Abandoned: the source stays where it was. Skipped: it goes on, and counts; the next read adds to the counts."""
    used = sa.select(tables.source_reads.c.cycle, tables.source_reads.c.used).order_by("cycle")
    ledger.close(planned(ledger, READ), Outcome.ABANDONED, "test")
    assert ledger.sources() == (log,)
    ledger.close(planned(ledger, READ), Outcome.SKIPPED, "test")
    assert ledger.sources() == (replace(log, position=900, line=12, tail_digest="digest at 900"),)
    more = SourceRead("corrections", 900, 1000, 13, "digest at 1000", {"used": 1})
    ledger.close(planned(ledger, more, "another correction"), Outcome.SKIPPED, "test")
    (shown,) = list_sources(engine, "test")
    assert (shown["position"], shown["line"], shown["counts"]) == (1000, 13, {"used": 3, "secret": 1})
    assert rows(engine, used) == [(1, False), (2, True), (3, True)]


def test_lines_are_not_claimed_twice(ledger: SqlLedger, engine: Engine, log: ImportedSource) -> None:
    """A read from elsewhere than where the source is used up to cannot be claimed; an unknown source not recorded."""
    ledger.close(planned(ledger, READ), Outcome.SKIPPED, "test")
    cycle = planned(ledger, replace(READ, position=950), "again")
    with pytest.raises(DreamdError, match="read source corrections from byte 0, but it is used up to 900"):
        ledger.close(cycle, Outcome.SKIPPED, "test")
    ledger.close(cycle, Outcome.ABANDONED, "test")
    with pytest.raises(DatabaseError):
        planned(ledger, replace(READ, name="unknown"), "unknown")
    assert rows(engine, sa.select(sa.func.max(tables.scenarios.c.cycle))) == [(2,)]


def test_a_plan_is_recorded_whole(ledger: SqlLedger, engine: Engine) -> None:
    """Refusals with where they came from, a secret without its text, events, and every field of a scenario."""
    scenario = make_scenario(
        source=Source.CONVERSATION, num_constraints=3, provenance="log.jsonl:7", evidence="Owls are mammals."
    )
    kept = Refusal(Source.DREAM, "dream", RefusalReason.SENSELESS, "no question in it", "cycle 1", "x" * 400)
    secret = Refusal(Source.CONVERSATION, "log", RefusalReason.SECRET, "an AWS key", "log.jsonl:9", "AKIA...")
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
    ledger.record_plan(
        cycle, Draw((scenario,), (kept, secret), (), (("source_dry", {"source": "log"}), ("dreamed", {"used": 1})))
    )
    shown = queries.show_cycle(engine, "test", 1)
    assert [(found["reason"], found["detail"], found["text"]) for found in shown["refusals"]] == [
        ("senseless", "no question in it", "x" * 300),
        ("secret", "an AWS key", ""),
    ]
    assert [(event["name"], event["level"], event["payload"]) for event in shown["events"]] == [
        ("source_dry", "warning", {"source": "log"}),
        ("dreamed", "info", {"used": 1}),
    ]
    (stored,) = shown["scenarios"]
    names = ("source", "num_constraints", "provenance", "evidence")
    assert [stored[name] for name in names] == ["conversation", 3, "log.jsonl:7", "Owls are mammals."]


def test_a_completion_that_could_not_be_judged(ledger: SqlLedger, engine: Engine) -> None:
    """It is neither passed nor failed, and says which judge could not tell and why."""
    cycle = drive_to(ledger, CycleState.SWEPT)
    unjudged = replace(make_judgement(1), passed=None, judge="model", reason="no sandbox")
    ledger.record_pairs(cycle, [make_judgement(0), unjudged], [], make_diversity())
    table = tables.completions
    found = rows(engine, sa.select(table.c.passed, table.c.judge, table.c.judge_reason).order_by("ordinal"))
    assert found == [(True, "rules", ""), (None, "model", "no sandbox")]
    assert queries.cycles(engine, "test")[0]["num_judged"] == 1


def test_the_diversity_of_a_batch_is_kept(ledger: SqlLedger, engine: Engine) -> None:
    """Every field, and the general share, beside the cycle."""
    ledger.record_pairs(drive_to(ledger, CycleState.SWEPT), [], [], make_diversity())
    shown = queries.show_cycle(engine, "test", 1)["diversity"]
    assert shown == asdict(make_diversity()) | {"cycle": 1, "general_share": 1 / 3}


def test_what_was_learned_last_night(ledger: SqlLedger, engine: Engine) -> None:
    """`learned` has the examples of cycles that made a step, with source, provenance and last message; no others."""
    ledger.close(drive_to(ledger, CycleState.CLAIMED), Outcome.LOST, "no step")
    head = ledger.head().version
    scenario = make_scenario(
        "Which owl is white?",
        source=Source.CONVERSATION,
        side=Side.GENERAL,
        pack="corrections",
        provenance="log.jsonl:7",
        evidence="The barn owl.",
    )
    example = make_example(scenario, "The snowy owl.", policy_version=head, rejected_text="All of them.")
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
    ledger.record_plan(cycle, Draw((scenario,)))
    ledger.record_sweep(cycle, [make_completion(scenario)])
    ledger.record_pairs(cycle, [], [example], make_diversity())
    ledger.claim(cycle, [example])
    ledger.record_step(cycle, make_step_report(1))
    with reading(engine) as connection:
        (found,) = connection.execute(sa.select(views.learned)).mappings()
    assert dict(found) == {
        "run": "test",
        "cycle": 2,
        "outcome": None,
        "finished_at": None,
        "source": "conversation",
        "pack": "corrections",
        "family": "three_words",
        "template": "three_words.1",
        "side": "general",
        "num_constraints": 1,
        "provenance": "log.jsonl:7",
        "prompt": "Which owl is white?",
        "chosen_source": "target",
        "chosen_text": "The snowy owl.",
        "rejected_text": "All of them.",
        "evidence": "The barn owl.",
        "candidate": None,
    }
