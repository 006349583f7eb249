"""What governor, breaker and the schedule of probes store and read back, on both databases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from builders import (
    drive_to,
    make_candidate,
    make_probe_result,
    make_probe_run,
    make_probe_runs,
    make_scenario,
    make_step_report,
    make_verdict,
    promote_one,
)
from sqlalchemy import Engine

from daemon.domain.errors import DreamdError, UsageError
from daemon.domain.probing import ProbeBudget
from daemon.domain.records import Adjustments, Cycle
from daemon.domain.states import (
    BreakerState,
    CycleState,
    Decision,
    GovernorRule,
    Knob,
    Objective,
    Outcome,
    ProbeReason,
)
from daemon.domain.verdicts import Breaker, CycleRecord, GovernorDecision
from daemon.storage import queries, tables
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.watching import acknowledge_breaker

ROLL_BACK = make_verdict(Decision.ROLL_BACK)
OPEN = Breaker(
    state=BreakerState.OPEN,
    reason="2 rollbacks in a row, cycles 1 and 2",
    since_cycle=2,
    num_openings=1,
    until=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
    evidence={"cycles": [1, 2]},
)


def make_decision(cycle: int = 1, **changes: object) -> GovernorDecision:
    decision = GovernorDecision(
        cycle_number=cycle,
        rule=GovernorRule.AFTER_ROLLBACK,
        knob=Knob.LR,
        from_value=1.0,
        to_value=0.5,
        until_cycle=cycle + 9,
        reason="cycle 4 was rolled back",
        applied=True,
        evidence={"rolled_back": 4},
    )
    return replace(decision, **changes)  # type: ignore[arg-type]


def roll_one_back(ledger: SqlLedger, families: Mapping[str, str]) -> Cycle:
    """A rolled-back cycle with one scenario per pack, of that family."""
    number = ledger.next_cycle_number()
    scenarios = [
        make_scenario(f"Cycle {number} asks for {pack} {family}.", pack=pack, family=family)
        for pack, family in families.items()
    ]
    cycle = drive_to(ledger, CycleState.PROBED, scenarios)
    ledger.roll_back(cycle, ROLL_BACK, ledger.head())
    return cycle


def test_a_probe_run_is_kept_beside_its_results(ledger: SqlLedger, engine: Engine) -> None:
    """Each run is a row with reason, turn, suite, cost and what was skipped; each new result names its run."""
    first = make_probe_run("nll", make_probe_result(item="a"), make_probe_result(item="b"), seconds=2.5)
    again = make_probe_run("nll", make_probe_result(item="b", value=9.0), make_probe_result(item="c"), turn=3)
    skipped = make_probe_run("attention_shift", reason=ProbeReason.SCHEDULED, skipped="no full-attention layer")
    ledger.record_probes("base", [first, again, skipped], None)
    with reading(engine) as connection:
        runs = connection.execute(sa.select(tables.probe_runs).order_by(tables.probe_runs.c.id)).all()
        results = connection.execute(sa.select(tables.probe_results).order_by(tables.probe_results.c.item)).all()
    stored = [(row.probe, row.reason, row.turn, row.suite_version, row.num_items, row.seconds) for row in runs]
    assert stored == [
        ("nll", "core", 0, "suite of nll", 2, 2.5),
        ("nll", "core", 3, "suite of nll", 2, 0.5),
        ("attention_shift", "scheduled", 0, "suite of attention_shift", 0, 0.5),
    ]
    assert [row.skipped for row in runs] == [None, None, "no full-attention layer"]
    ids = [row.id for row in runs]
    assert [(row.item, row.value, row.probe_run_id) for row in results] == [
        ("a", 3.0, ids[0]),
        ("b", 3.0, ids[0]),
        ("c", 3.0, ids[1]),
    ]


def test_the_budget_goes_by_the_newest_measurements_within_cycles(ledger: SqlLedger) -> None:
    """Anchors, confirmations and evaluations do not count; a cycle's length is the median without its probes."""
    assert ledger.probe_budget() == ProbeBudget()
    for number, (nll, step) in enumerate(((3.0, 10.0), (4.0, 30.0), (5.0, 20.0)), start=1):
        cycle = drive_to(ledger, CycleState.PROBED)
        ledger.record_probes(str(cycle.candidate_version), [make_probe_run("nll", seconds=nll)], cycle)
        if number == 2:
            late = [
                make_probe_run("kl", reason=ProbeReason.SCHEDULED, seconds=7.0),
                make_probe_run("code", reason=ProbeReason.SUSPICION, seconds=8.0),
                make_probe_run("accept", reason=ProbeReason.CONFIRMATION, seconds=99.0),
            ]
            ledger.record_probes(str(cycle.candidate_version), late, cycle)
        ledger.promote(cycle, make_verdict())
        ledger.record_seconds(cycle, {"step": step, "sweep": 1.0, "probe": 50.0, "confirm": 60.0})
    ledger.record_probes("base", [make_probe_run("nll", reason=ProbeReason.ANCHOR, seconds=70.0)], None)
    unstepped = drive_to(ledger, CycleState.PLANNED)
    ledger.close(unstepped, Outcome.ABANDONED, "test")
    ledger.record_seconds(unstepped, {"sample": 900.0})
    promote_one(ledger)  # killed before its seconds were recorded
    budget = ledger.probe_budget()
    assert budget.seconds == {"nll": 5.0, "kl": 7.0, "code": 8.0}
    assert budget.last_cycle == {"nll": 3, "kl": 2, "code": 2}
    assert budget.cycle_seconds == 21.0


def test_adjustments_of_a_cycle_come_back_and_go_into_its_batch(ledger: SqlLedger, engine: Engine) -> None:
    """They are equal in the ledger and in the claimed batch; the row holds only what is not as usual."""
    adjusted = Adjustments(lr_factor=0.1 + 0.2, objective=Objective.DPOP, general_fraction=0.4, favour="coding")
    plain = drive_to(ledger, CycleState.PLANNED)
    ledger.close(plain, Outcome.ABANDONED, "test")
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={}, adjustments=adjusted)
    assert ledger.adjustments(cycle) == adjusted
    assert ledger.adjustments(plain) == Adjustments()
    with reading(engine) as connection:
        stored = connection.scalars(sa.select(tables.cycles.c.adjustments).order_by(tables.cycles.c.number)).all()
    assert stored == [
        None,
        {"lr_factor": 0.30000000000000004, "objective": "dpop", "general_fraction": 0.4, "favour": "coding"},
    ]
    assert queries.show_cycle(engine, "test", 2)["adjustments"] == stored[1]


def test_a_claimed_batch_carries_its_adjustments(ledger: SqlLedger, engine: Engine) -> None:
    """What the policy steps on is what the cycle's row says, also after a restart."""
    cycle = drive_to(ledger, CycleState.PAIRED)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.cycles).values(adjustments={"scenarios_factor": 2.0}))
    _, batch = ledger.claim(cycle, ledger.examples(cycle))
    assert batch.adjustments == Adjustments(scenarios_factor=2.0)


def test_decisions_are_recorded_with_the_cycle_they_are_for(ledger: SqlLedger, engine: Engine) -> None:
    """Values of every kind come back equal, oldest first, each with an event; one for another cycle opens nothing."""
    decisions = (
        make_decision(),
        make_decision(knob=Knob.OBJECTIVE, from_value=None, to_value="dpop", until_cycle=None, applied=False),
    )
    with pytest.raises(DreamdError, match="is for cycle 1, not for 2"):
        promote_one(ledger)
        ledger.open_cycle(head=ledger.head(), run_seed=7, config={}, decisions=decisions)
    assert (ledger.next_cycle_number(), ledger.unfinished(), ledger.governor_decisions()) == (2, (), ())
    decisions = tuple(replace(decision, cycle_number=2) for decision in decisions)
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={}, decisions=decisions)
    assert ledger.governor_decisions() == decisions
    ledger.close(cycle, Outcome.ABANDONED, "test")
    shown = queries.show_cycle(engine, "test", 2)
    assert [row["knob"] for row in shown["governor"]] == ["lr", "objective"]
    assert [(event["name"], event["payload"]["to_value"]) for event in shown["events"]] == [
        ("governor_decided", 0.5),
        ("governor_decided", "dpop"),
    ]
    assert [row["knob"] for row in queries.governor(engine, "test", 1)] == ["objective"]


def test_the_governor_sees_its_newest_200_decisions(ledger: SqlLedger) -> None:
    """Of 201 pieces of advice the oldest is left out."""
    many = [make_decision(to_value=float(index), applied=False) for index in range(201)]
    ledger.open_cycle(head=ledger.head(), run_seed=7, config={}, decisions=many)
    assert [decision.to_value for decision in ledger.governor_decisions()] == [float(index) for index in range(1, 201)]


def test_the_governor_sees_what_still_holds_however_old(ledger: SqlLedger) -> None:
    """The newest applied decision of each knob, and the newest of these that lasts, come before the newest 200.

    Neither what these replaced nor old advice does.
    """
    replaced = make_decision(to_value=0.5, until_cycle=None)
    lasting = make_decision(to_value=0.25, until_cycle=None)
    temporary = make_decision(to_value=0.125)
    objective = make_decision(knob=Knob.OBJECTIVE, from_value="orpo", to_value="dpop", until_cycle=None)
    advice = make_decision(knob=Knob.FAVOUR, from_value=None, to_value="coding", applied=False)
    many = [make_decision(knob=Knob.PROBES, to_value=float(index), applied=False) for index in range(200)]
    decisions = [replaced, objective, lasting, advice, temporary, *many]
    ledger.open_cycle(head=ledger.head(), run_seed=7, config={}, decisions=decisions)
    assert ledger.governor_decisions() == (objective, lasting, temporary, *many)


def test_the_breakers_newest_state_holds(ledger: SqlLedger, engine: Engine) -> None:
    """Closed since cycle 0 until it changes; then each change is a row and an event, an opening an error."""
    assert ledger.breaker() == Breaker(BreakerState.CLOSED, "", 0)
    assert queries.status(engine, "test")["breaker"]["state"] == "closed"
    closed = Breaker(BreakerState.CLOSED, "the trial of cycle 3 was promoted", 3)
    for breaker in (OPEN, closed):
        ledger.change_breaker(breaker)
        assert ledger.breaker() == breaker
    found = json.loads(json.dumps(queries.breaker(engine, "test", 1)))
    assert (found["now"]["state"], found["now"]["cycle"]) == ("closed", 3)
    assert found["changes"] == [found["now"]]
    changes = queries.breaker(engine, "test")["changes"]
    assert [(row["state"], row["until"], row["num_openings"]) for row in changes] == [
        ("open", "2030-01-02T03:04:05+00:00", 1),
        ("closed", None, 0),
    ]
    with reading(engine) as connection:
        told = connection.execute(sa.select(tables.events).order_by(tables.events.c.id)).all()
    assert [(event.name, event.level) for event in told] == [("breaker_opened", "error"), ("breaker_closed", "info")]
    assert told[0].payload["reason"] == OPEN.reason


def test_an_operator_acknowledges_an_open_breaker(ledger: SqlLedger, engine: Engine) -> None:
    """The next state is half-open, acknowledged, since the newest cycle; the daemon is not fenced."""
    promote_one(ledger)
    for number in (2, 3):
        assert roll_one_back(ledger, {"listening": "owls"}).number == number
    ledger.change_breaker(OPEN)
    row = json.loads(json.dumps(acknowledge_breaker(engine, "test", "a bad pack, removed")))
    assert (row["state"], row["cycle"], row["acknowledged"], row["until"]) == ("half_open", 3, True, None)
    breaker = ledger.breaker()
    assert (breaker.state, breaker.since_cycle, breaker.num_openings) == (BreakerState.HALF_OPEN, 3, 1)
    assert breaker.acknowledged
    assert breaker.evidence == {"acknowledged": "a bad pack, removed", "opened_because": OPEN.reason}
    assert queries.status(engine, "test")["breaker"] == row
    with reading(engine) as connection:
        newest = connection.execute(sa.select(tables.events).order_by(tables.events.c.id.desc())).first()
    assert newest is not None
    assert (newest.name, newest.level, newest.payload["acknowledged"]) == ("breaker_half_open", "warning", True)
    promote_one(ledger)


@pytest.mark.parametrize("state", [None, BreakerState.HALF_OPEN, BreakerState.CLOSED])
def test_only_an_open_breaker_is_acknowledged(ledger: SqlLedger, engine: Engine, state: BreakerState | None) -> None:
    """A closed or half-open one is a mistake that says so and changes nothing; so is an unknown run."""
    if state is not None:
        ledger.change_breaker(replace(OPEN, state=state))
    before = ledger.breaker()
    with pytest.raises(UsageError, match="not open: there is nothing to acknowledge"):
        acknowledge_breaker(engine, "test", "why not")
    assert ledger.breaker() == before
    with pytest.raises(UsageError, match="no run other"):
        acknowledge_breaker(engine, "other", "why not")


def test_the_families_of_a_rolled_back_batch_rest(engine: Engine, ledger: SqlLedger) -> None:
    """The first rollback rests a family 3 cycles, the second 6, counted from its own cycle; others go on."""
    ledger = SqlLedger.acquire(engine, "test", baked_after=2, rest_cycles=3)
    roll_one_back(ledger, {"listening": "owls", "arithmetic": "sums"})
    assert ledger.resting(1) == {}
    assert ledger.resting(4) == {("listening", "owls"): 1, ("arithmetic", "sums"): 1}
    assert ledger.resting(5) == {}
    roll_one_back(ledger, {"listening": "owls"})
    assert ledger.resting(3) == {("listening", "owls"): 2, ("arithmetic", "sums"): 1}
    assert ledger.resting(8) == {("listening", "owls"): 2}
    assert ledger.resting(9) == {}
    assert queries.show_cycle(engine, "test", 2)["resting"] == [
        {"pack": "arithmetic", "family": "sums", "until_cycle": 4, "num_rollbacks": 1},
        {"pack": "listening", "family": "owls", "until_cycle": 4, "num_rollbacks": 1},
    ]


def test_nothing_rests_when_it_is_switched_off(engine: Engine, ledger: SqlLedger) -> None:
    """With 0 cycles of rest a rollback leaves no row."""
    ledger = SqlLedger.acquire(engine, "test", rest_cycles=0)
    roll_one_back(ledger, {"listening": "owls"})
    assert ledger.resting(2) == {}
    with reading(engine) as connection:
        assert connection.execute(sa.select(tables.resting_families)).all() == []


def test_a_rollback_goes_where_its_verdict_says(ledger: SqlLedger, engine: Engine) -> None:
    """A verdict that names a checkpoint is stored with it, and no other target is accepted."""
    promote_one(ledger)
    cycle = drive_to(ledger, CycleState.PROBED)
    verdict = replace(ROLL_BACK, to_version="base")
    with pytest.raises(DreamdError, match="goes back to base, not to cycle-000001"):
        ledger.roll_back(cycle, verdict, ledger.head())
    assert ledger.cycle(2).state is CycleState.PROBED
    ledger.roll_back(cycle, verdict, ledger.checkpoint("base"))
    assert queries.show_cycle(engine, "test", 2)["verdict"]["to_version"] == "base"


def test_records_of_finished_cycles(ledger: SqlLedger) -> None:
    """Means over the candidate's items, paired differences from the base by common items, what fell; oldest first."""
    base = [
        make_probe_result("nll", "a", 3.0),
        make_probe_result("nll", "b", 5.0),
        make_probe_result("accept", "1", 1.0, passed=True),
    ]
    ledger.record_probes("base", make_probe_runs(base), None)
    cycle = drive_to(ledger, CycleState.CLAIMED)
    cycle = ledger.record_step(cycle, make_step_report(2, lr=2e-5))
    cycle = ledger.record_published(cycle, make_candidate(cycle))
    results = [
        make_probe_result("nll", "a", 3.5),
        make_probe_result("nll", "b", 4.0),
        make_probe_result("nll", "new", 7.5),
        make_probe_result("nll", "broken", None),
        make_probe_result("accept", "1", 0.0, passed=False),
        make_probe_result("accept", "2", 1.0, passed=True),
    ]
    ledger.record_probes("cycle-000001", make_probe_runs(results), cycle)
    evidence = {
        "fell": ["nll", "accept"],
        "means": {"accept": {"now": 0.5, "base": 1.0}, "nll": {"now": 5.0}, "kl": {"base": 0.0}},
        "differences": {"nll": -0.25},
    }
    fallen = replace(ROLL_BACK, evidence=evidence)
    ledger.roll_back(ledger.probed(cycle), fallen, ledger.head())
    ledger.close(drive_to(ledger, CycleState.SWEPT), Outcome.SKIPPED, "nothing to learn")
    promote_one(ledger)
    drive_to(ledger, CycleState.PLANNED)
    rolled_back = CycleRecord(
        number=1,
        outcome=Outcome.ROLLED_BACK,
        reason="held-out NLL rose by 0.2",
        lr=2e-5,
        means={"accept": 0.5, "nll": 5.0},
        differences={"nll": -0.25},
        fell=("nll", "accept"),
    )
    skipped = CycleRecord(2, Outcome.SKIPPED, "nothing to learn")
    promoted = CycleRecord(3, Outcome.PROMOTED, "within every margin", 1e-5)
    assert ledger.records(10) == (rolled_back, skipped, promoted)
    assert ledger.records(2) == (skipped, promoted)
    assert ledger.records(10, after_cycle=2) == (promoted,)


def test_an_undone_cycle_has_no_figures(ledger: SqlLedger) -> None:
    """After an operator's rollback to cycle 1 nothing is decided by the figures of cycle 2, the outcome stays.

    The figures of a cycle that the watchdog refused stay too: they are why.
    """
    figures = {"means": {"kl": {"now": 0.3}}, "differences": {"nll": -0.25}}
    for _ in range(2):
        ledger.promote(drive_to(ledger, CycleState.PROBED), make_verdict(evidence=figures))
    ledger.roll_back(drive_to(ledger, CycleState.PROBED), replace(ROLL_BACK, evidence=figures), ledger.head())
    ledger.roll_back_head(ledger.checkpoint("cycle-000001"), "its KL")
    first, second, third = ledger.records(10)
    assert (first.means, first.differences) == (third.means, third.differences) == ({"kl": 0.3}, {"nll": -0.25})
    assert (second.outcome, second.means, second.differences) == (Outcome.PROMOTED, {}, {})
    ledger.roll_back_head(ledger.checkpoint("cycle-000002"), "it was right")
    assert ledger.records(10)[1].means == {"kl": 0.3}


def test_the_probes_share_of_each_cycle(ledger: SqlLedger, engine: Engine) -> None:
    """Seconds of probing and confirming over all seconds; cycles without seconds are left out."""
    for seconds in ({"probe": 2.0, "confirm": 1.0, "step": 9.0}, {}, {"step": 4.0}):
        ledger.record_seconds(promote_one(ledger), seconds)
    found = [(row["cycle"], row["probe_seconds"], row["share"]) for row in queries.probe_share(engine, "test")]
    assert found == [(1, 3.0, 0.25), (3, 0.0, 0.0)]
    assert [row["cycle"] for row in queries.probe_share(engine, "test", 2)] == [3]


def test_show_lists_what_was_measured(ledger: SqlLedger, engine: Engine) -> None:
    """A cycle's probe runs are shown with their cost, in the order of measurement, as JSON."""
    cycle = drive_to(ledger, CycleState.PUBLISHED)
    runs = [make_probe_run("nll", make_probe_result()), make_probe_run("kl", skipped="no anchor", seconds=0.0)]
    ledger.record_probes(str(cycle.candidate_version), runs, cycle)
    shown = json.loads(json.dumps(queries.show_cycle(engine, "test", 1), allow_nan=False))
    assert [(run["probe"], run["seconds"], run["skipped"]) for run in shown["probe_runs"]] == [
        ("nll", 0.5, None),
        ("kl", 0.0, "no anchor"),
    ]
