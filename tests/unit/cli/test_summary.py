"""What a person reads about a cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import drive_to, make_scenario

from daemon.cli.history import everything_of
from daemon.cli.summary import cycle_lines
from daemon.domain.records import Draw, Refusal
from daemon.domain.states import CycleState, Outcome, RefusalReason, Source
from daemon.storage import queries
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger


def lines_of(state_dir: Path, number: int) -> list[str]:
    engine = open_database(f"sqlite:///{state_dir / 'dreamd.sqlite3'}", readonly=True)
    try:
        return cycle_lines(everything_of(queries, engine, "default", number))
    finally:
        engine.dispose()


def test_a_promoted_cycle_shows_every_figure(state_dir: Path) -> None:
    """Scenarios by side, sweep, examples, loss, log-probabilities, NLL, pass rates, engine, probes, verdict, time."""
    assert lines_of(state_dir, 1) == [
        "cycle 1 promoted",
        "  scenarios  2: accept 2",
        "  sources    listening 2",
        "  sweep      2 answers; 1 of 2 unguided, judged ones passed",
        "  examples   2 pairs, 0 chosen-only",
        "  diversity  families 1, constraints per scenario 1.0, "
        "distinct-2 0.60 (prompts) 0.50 (chosen), mean similarity 0.333",
        "  step       loss 2.5000, log p chosen -2.400, rejected -2.000 (orpo, lr 1e-05)",
        "  held-out   NLL 2.9000 (-0.1000 against the base, -0.1000 against the parent)",
        "  behaviour  accept 100 % (parent 0 %), push back 100 % (parent 0 %)",
        "  engine     vllm: mean |log p| difference from the trainer 2.0e-06 nats, weights equal",
        "  probes     nll 2.0, accept 1.2, push_back 1.8 s; 27 % of the cycle",
        "  verdict    promote: within every margin",
        "  seconds    sweep 12.3, step 1.5, probe 4.5, confirm 0.5",
    ]


def test_dreams_and_refusals_are_counted(state_dir: Path) -> None:
    """The yield of dreams and what was refused stand behind the packs."""
    engine = open_database(f"sqlite:///{state_dir / 'dreamd.sqlite3'}")
    ledger = SqlLedger.acquire(engine, "default")
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
    refusal = Refusal(Source.DREAM, "dream", RefusalReason.SENSELESS, "not about owls")
    dreamed = {"wanted": 2, "written": 8, "used": 1, "refused": {"senseless": 7}}
    drawn = Draw(
        (make_scenario(), make_scenario("Another one.", pack="dream")), (refusal,) * 7, (), (("dreamed", dreamed),)
    )
    ledger.record_plan(cycle, drawn)
    engine.dispose()
    line = next(line for line in lines_of(state_dir, 3) if line.startswith("  sources"))
    assert line == "  sources    dream 1, listening 1; dreams 1 used of 8 written; refused 7 senseless"


def test_a_rollback_is_shown_with_its_versions(state_dir: Path) -> None:
    """From where to where, and whether the restored policy was verified."""
    lines = lines_of(state_dir, 2)
    assert lines[0] == "cycle 2 rolled_back"
    assert "  verdict    roll back: held-out NLL rose by 0.2" in lines
    assert "  rollback   cycle-000002 -> cycle-000001, not verified yet: the next start verifies it" in lines


@pytest.mark.parametrize("state", [CycleState.PLANNED, CycleState.SWEPT, CycleState.PAIRED, CycleState.STEPPED])
def test_an_unfinished_cycle_shows_what_there_is(state_dir: Path, state: CycleState) -> None:
    """Parts that were not reached are left out."""
    engine = open_database(f"sqlite:///{state_dir / 'dreamd.sqlite3'}")
    drive_to(SqlLedger.acquire(engine, "default"), state)
    engine.dispose()
    lines = lines_of(state_dir, 3)
    assert lines[0] == f"cycle 3 unfinished, {state}"
    assert not any(line.startswith(("  held-out", "  verdict", "  rollback")) for line in lines)


def test_an_abandoned_cycle_says_why(state_dir: Path) -> None:
    """The reason stands in the first line."""
    engine = open_database(f"sqlite:///{state_dir / 'dreamd.sqlite3'}")
    ledger = SqlLedger.acquire(engine, "default")
    ledger.close(drive_to(ledger, CycleState.PLANNED), Outcome.ABANDONED, "stopped before the claim")
    engine.dispose()
    assert lines_of(state_dir, 3)[0] == "cycle 3 abandoned: stopped before the claim"


def test_differences_of_nll_are_the_verdicts_own(state_dir: Path) -> None:
    """Paired over the documents that both measured; means over other documents differ by more than the policy does."""
    engine = open_database(f"sqlite:///{state_dir / 'dreamd.sqlite3'}", readonly=True)
    found = everything_of(queries, engine, "default", 1)
    engine.dispose()

    def held_out(**changes: Any) -> str:
        (line,) = (line for line in cycle_lines(found | changes) if line.startswith("  held-out"))
        return line

    evidence = {"differences": {"nll": -0.002}, "gates": [{"name": "nll_rise", "value": 0.001}]}
    assert held_out(verdict=found["verdict"] | {"evidence": evidence}) == (
        "  held-out   NLL 2.9000 (-0.0020 against the base, +0.0010 against the parent)"
    )
    more = [{"probe": "nll", "num_items": 2, "mean": 4.0, "pass_rate": None}]
    assert "against the parent" not in held_out(probes_parent=more)
