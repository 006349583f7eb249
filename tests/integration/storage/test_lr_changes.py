"""Every change of the learning rate or objective is one row that says why, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    make_candidate,
    make_completion,
    make_diversity,
    make_example,
    make_judgement,
    make_scenario,
    make_step_report,
)
from sqlalchemy import Engine

from daemon.domain.records import Draw
from daemon.domain.states import Outcome
from daemon.storage import queries, tables
from daemon.storage.database import reading, writing
from daemon.storage.ledger import SqlLedger

PLAN = {"phases": [{"objective": "sft", "cycles": 2}, {"objective": "dpo"}]}


def step(ledger: SqlLedger, training: dict[str, Any], **report: Any) -> int:
    """One cycle that ran with `training` and made the step `report`, then was lost."""
    head = ledger.head()
    cycle = ledger.open_cycle(head=head, run_seed=7, config={"training": training, "service": {}})
    scenario = make_scenario(f"Cycle {cycle.number}.")
    example = make_example(scenario, policy_version=head.version)
    ledger.record_plan(cycle, Draw((scenario,)))
    ledger.record_sweep(cycle, [make_completion(scenario, policy_version=head.version)])
    ledger.record_pairs(cycle, [make_judgement()], [example], make_diversity())
    ledger.claim(cycle, [example])
    cycle = ledger.record_step(cycle, make_step_report(1, **report))
    ledger.record_published(cycle, make_candidate(cycle))
    ledger.close(cycle, Outcome.LOST, "a test")
    return cycle.number


def changes(engine: Engine) -> list[tuple[Any, ...]]:
    names = ("cycle", "previous_lr", "lr", "previous_objective", "objective", "phase", "reason")
    table = tables.lr_changes
    with reading(engine) as connection:
        found = connection.execute(sa.select(*(table.c[name] for name in names)).order_by(table.c.cycle))
        return [tuple(row) for row in found]


def test_each_change_says_why(ledger: SqlLedger, engine: Engine) -> None:
    """First step, schedule, next phase, another configuration: one row each, with what was before and what is now."""
    step(ledger, PLAN, objective="sft", lr=5e-6)
    step(ledger, PLAN, objective="sft", lr=1e-5)
    step(ledger, PLAN, objective="dpo", lr=5e-7, phase=2)
    step(ledger, {**PLAN, "lr": 1}, objective="dpo", lr=4e-7, phase=2)
    assert changes(engine) == [
        (1, None, 5e-6, None, "sft", 1, "first step"),
        (2, 5e-6, 1e-5, "sft", "sft", 1, "schedule"),
        (3, 1e-5, 5e-7, "sft", "dpo", 2, "phase"),
        (4, 5e-7, 4e-7, "dpo", "dpo", 2, "configuration"),
    ]
    assert queries.show_cycle(engine, "test", 2)["lr_change"]["reason"] == "schedule"


def test_what_stays_leaves_no_row(ledger: SqlLedger, engine: Engine) -> None:
    """Neither a skipped cycle nor a changed key that does not move the learning rate is a change."""
    step(ledger, PLAN, lr=1e-5)
    skipped = ledger.open_cycle(head=ledger.head(), run_seed=7, config={"training": {}})
    ledger.close(skipped, Outcome.SKIPPED, "nothing to learn")
    third = step(ledger, {**PLAN, "micro_batch": 2}, lr=1e-5)
    assert [change[0] for change in changes(engine)] == [1]
    assert queries.show_cycle(engine, "test", third)["lr_change"] is None


def test_the_same_rate_for_another_objective_is_a_change(ledger: SqlLedger, engine: Engine) -> None:
    """1e-5 of SFT and 1e-5 of ORPO are not the same step."""
    step(ledger, PLAN, objective="sft")
    step(ledger, PLAN, objective="orpo", phase=2)
    assert changes(engine)[1] == (2, 1e-5, 1e-5, "sft", "orpo", 2, "phase")


def test_a_step_and_its_change_are_one_transaction(ledger: SqlLedger, engine: Engine) -> None:
    """When the change cannot be written, neither is the step."""
    with writing(engine) as connection:
        connection.exec_driver_sql("DROP TABLE lr_changes")
    with pytest.raises(Exception, match="lr_changes"):
        step(ledger, PLAN)
    with reading(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.steps)) == 0


def test_a_figure_that_is_no_number_is_null(ledger: SqlLedger, engine: Engine) -> None:
    """The cosine of an update of nothing may be NaN: it is stored as unknown, and the step is recorded."""
    number = step(ledger, PLAN, update_cosine=float("nan"), bf16_changed=float("nan"))
    report = ledger.step_report(ledger.cycle(number))
    assert (report.update_cosine, report.bf16_changed) == (None, None)
