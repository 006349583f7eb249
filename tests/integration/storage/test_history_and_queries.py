"""What is read back: the watchdog's history, the views' numbers, and what the command line shows."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa
from builders import (
    BASE_VERSION,
    drive_to,
    make_candidate,
    make_completion,
    make_diversity,
    make_engine_check,
    make_example,
    make_judgement,
    make_probe_result,
    make_probe_runs,
    make_scenario,
    make_step_report,
    make_verdict,
    promote_one,
)
from sqlalchemy import Engine

from daemon.domain.errors import UsageError
from daemon.domain.probing import ProbeRun
from daemon.domain.records import Draw
from daemon.domain.states import CycleState, Decision, ExampleKind, Outcome
from daemon.storage import probe_queries, queries, views
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run


@pytest.fixture
def hand_made(ledger: SqlLedger) -> SqlLedger:
    """One promoted cycle whose every number is known: 2 scenarios, 3 completions, 1 pair, 1 chosen-only."""
    one, two = make_scenario("one"), make_scenario("two")
    base = [make_probe_result("nll", "a", 3.0), make_probe_result("nll", "b", 4.0)]
    ledger.record_probes(BASE_VERSION, make_probe_runs(base), None)
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={"lr": 1e-5})
    cycle = ledger.record_plan(cycle, Draw((one, two)))
    ledger.record_engine_check(make_engine_check(mean_abs_diff=9e-6), "vllm", cycle)
    completions = [make_completion(one, 0), make_completion(one, 1), make_completion(two, 2)]
    cycle = ledger.record_sweep(cycle, completions)
    examples = [make_example(one, chosen_ordinal=0, rejected_ordinal=1), make_example(two, rejected_text=None)]
    cycle = ledger.record_pairs(cycle, [make_judgement(0), make_judgement(1, passed=False)], examples, make_diversity())
    cycle, _ = ledger.claim(cycle, examples)
    cycle = ledger.record_step(cycle, make_step_report(2, num_pairs=1))
    cycle = ledger.record_published(cycle, make_candidate(cycle))
    results = [
        make_probe_result("nll", "a", 2.5),
        make_probe_result("nll", "b", 3.5),
        make_probe_result("nll", "c", float("nan")),
        *(make_probe_result("accept", f"{index}", None, passed=index < 3) for index in range(4)),
        *(make_probe_result("push_back", f"{index}", None, passed=False) for index in range(2)),
    ]
    ledger.record_probes("cycle-000001", make_probe_runs(results), cycle)
    ledger.record_engine_check(make_engine_check("cycle-000001", mean_abs_diff=2e-6), "vllm", cycle)
    ledger.promote(ledger.probed(cycle), make_verdict())
    ledger.event("cycle_finished", cycle=cycle, outcome="promoted")
    return ledger


def test_the_numbers_of_a_hand_made_cycle(hand_made: SqlLedger, engine: Engine) -> None:
    """Every column of `cycle_summary` is the number counted by hand."""
    with reading(engine) as connection:
        row = dict(connection.execute(sa.select(views.cycle_summary)).mappings().one())
    assert row.pop("started_at").tzinfo is not None
    assert row.pop("finished_at") is not None
    assert row == {
        "run": "test",
        "cycle": 1,
        "state": "finished",
        "outcome": "promoted",
        "reason": "within every margin",
        "parent": "base",
        "candidate": "cycle-000001",
        "num_scenarios": 2,
        "num_completions": 3,
        "num_judged": 2,
        "num_passed": 1,
        "num_pairs": 1,
        "num_chosen_only": 1,
        "objective": "orpo",
        "lr": 1e-5,
        "loss": 2.5,
        "chosen_logprob": -2.4,
        "rejected_logprob": -2.0,
        "margin": -0.4,
        "held_out_nll": 3.0,
        "held_out_nll_vs_base": -0.5,
        "accept_rate": 0.75,
        "push_back_rate": 0.0,
        "decision": "promote",
        "engine_logprob_diff": 2e-6,
    }


def test_means_that_are_compared_are_over_the_same_items(ledger: SqlLedger, engine: Engine) -> None:
    """A candidate with an item more, which is easy: it is 0.5 worse than base and parent on the two that all have.

    After the rollback the head is what there is now, and the candidate is shown apart; rates are of all its answers.
    """

    def measured(passed: bool, **values: float) -> list[ProbeRun]:
        items = [make_probe_result("nll", item, value) for item, value in values.items()]
        return make_probe_runs([*items, make_probe_result("accept", str(passed), 1.0, passed=passed)])

    ledger.record_probes(BASE_VERSION, measured(True, a=3.0, b=4.0), None)
    cycle = drive_to(ledger, CycleState.PUBLISHED)
    ledger.record_probes("cycle-000001", measured(False, a=3.5, b=4.5, easy=0.25), cycle)
    ledger.roll_back(ledger.probed(cycle), make_verdict(Decision.ROLL_BACK), ledger.head())
    shown = queries.show_cycle(engine, "test", 1)
    assert shown["summary"]["held_out_nll_vs_base"] == 0.5
    means = [{row["probe"]: row["mean"] for row in shown[name]}["nll"] for name in ("probes", "probes_parent")]
    assert means == [4.0, 3.5]
    found = {row["probe"]: row for row in probe_queries.probes(engine, "test", 2)}
    nll, accept = found["nll"], found["accept"]
    assert (nll["version"], nll["head"]) == ("cycle-000001", BASE_VERSION)
    assert [nll[name]["mean"] for name in ("measured", "refused", "now", "baked", "base")] == [4.0, 4.0, 3.5, 3.5, 3.5]
    assert [accept[name]["pass_rate"] for name in ("refused", "now")] == [0.0, 1.0]
    ledger.promote(drive_to(ledger, CycleState.PROBED), make_verdict())
    ledger.record_probes("cycle-000002", measured(True, a=2.0, b=2.0), None)
    (nll,) = (row for row in probe_queries.probes(engine, "test", 2, 1) if row["probe"] == "nll")
    assert (nll["now"]["mean"], nll["refused"]) == (2.0, None)


def test_a_cycle_that_just_began_has_a_summary(ledger: SqlLedger, engine: Engine) -> None:
    """What is not there yet is NULL or 0, and the row is there."""
    drive_to(ledger, CycleState.PLANNED)
    (row,) = queries.cycles(engine, "test")
    assert (row["state"], row["num_scenarios"], row["num_completions"]) == ("planned", 2, 0)
    assert row["outcome"] is row["loss"] is row["held_out_nll"] is row["accept_rate"] is row["decision"] is None


def test_the_lineage_view_follows_the_head(ledger: SqlLedger, engine: Engine) -> None:
    """It lists head to base, without rejected checkpoints, for each run its own."""
    promote_one(ledger)
    ledger.roll_back(drive_to(ledger, CycleState.PROBED), make_verdict(Decision.ROLL_BACK), ledger.head())
    promote_one(ledger)
    create_run(engine, "empty", 1, "models/small", {}, [])
    with reading(engine) as connection:
        found = connection.execute(sa.select(views.lineage).order_by(views.lineage.c.depth)).all()
    assert [tuple(row) for row in found] == [
        ("test", 0, "cycle-000003", 3, "cycle-000001"),
        ("test", 1, "cycle-000001", 1, "base"),
        ("test", 2, "base", None, None),
    ]


def test_history_compares_with_parent_baked_and_base(ledger: SqlLedger) -> None:
    """With anchors every 2 checkpoints, the fifth cycle's candidate has A1 = cycle 2 and the run's steps in order."""
    values = iter([3.0, 3.1, 3.2, 3.3, 3.4])
    ledger.record_probes(BASE_VERSION, _measured(next(values)), None)
    for number in range(1, 5):
        cycle = drive_to(ledger, CycleState.CLAIMED)
        cycle = ledger.record_step(cycle, make_step_report(2, update_rms=number * 1e-6, lr=1e-5))
        cycle = ledger.record_published(cycle, make_candidate(cycle))
        ledger.record_probes(str(cycle.candidate_version), _measured(next(values)), cycle)
        ledger.promote(ledger.probed(cycle), make_verdict())
    history = ledger.history(drive_to(ledger, CycleState.PUBLISHED))
    assert [_nll(results) for results in (history.parent, history.baked, history.base)] == [3.4, 3.2, 3.0]
    assert history.update_rms_over_lr == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert history.chosen_logp == (-3.0, -3.1, -3.2, -3.3, -3.4)


def test_history_of_the_first_cycle(ledger: SqlLedger) -> None:
    """Before anything was promoted parent, A1 and A0 are all the base, and there is no step to compare with."""
    ledger.record_probes(BASE_VERSION, _measured(3.0), None)
    history = ledger.history(drive_to(ledger, CycleState.PROBED))
    assert history.parent == history.baked == history.base == ledger.probe_results(BASE_VERSION)
    assert (history.update_rms_over_lr, history.chosen_logp) == ((), (-3.0,))


def test_history_leaves_out_what_was_rolled_back(ledger: SqlLedger) -> None:
    """A rejected candidate's step and probes are not part of the ancestry."""
    rejected = drive_to(ledger, CycleState.PROBED)
    ledger.record_probes(str(rejected.candidate_version), _measured(9.0), rejected)
    ledger.roll_back(rejected, make_verdict(Decision.ROLL_BACK), ledger.head())
    history = ledger.history(drive_to(ledger, CycleState.PROBED))
    assert (history.parent, history.update_rms_over_lr, history.chosen_logp) == ((), (), ())


def test_status_of_a_run(hand_made: SqlLedger, engine: Engine) -> None:
    """It says where the head is, how cycles ended, what runs now and how much is spent, as JSON."""
    hand_made.close(drive_to(hand_made, CycleState.SWEPT), Outcome.ABANDONED, "test")
    drive_to(hand_made, CycleState.CLAIMED)
    status = json.loads(json.dumps(queries.status(engine, "test", num_last=2), allow_nan=False))
    assert (status["run"]["name"], status["run"]["seed"], status["head"]["version"]) == ("test", 7, "cycle-000001")
    assert status["cycles_by_outcome"] == {"abandoned": 1, "promoted": 1}
    assert status["claims_by_kind"] == {"example": 4, "held_out": 1, "scenario": 4}
    assert (status["current"]["number"], status["current"]["state"]) == (3, "claimed")
    assert [cycle["cycle"] for cycle in status["last_cycles"]] == [2, 3]
    assert status["unverified_rollbacks"] == 0


def test_status_of_a_run_that_did_nothing_yet(engine: Engine) -> None:
    """A run just made has no head and no cycles, and says so with empty values."""
    create_run(engine, "bare", 1, "models/small", {}, [])
    status = queries.status(engine, "bare")
    assert (status["head"], status["current"], status["last_cycles"], status["cycles_by_outcome"]) == (
        None,
        None,
        [],
        {},
    )


def test_everything_about_one_cycle(hand_made: SqlLedger, engine: Engine) -> None:
    """Scenarios with their passes, examples with texts, step, probes by kind, verdict and events, as JSON."""
    shown = json.loads(json.dumps(queries.show_cycle(engine, "test", 1), allow_nan=False))
    counts = [(found["num_completions"], found["num_judged"], found["num_passed"]) for found in shown["scenarios"]]
    assert counts == [(2, 2, 1), (1, 0, 0)]
    assert [example["kind"] for example in shown["examples"]] == [ExampleKind.PAIR, ExampleKind.CHOSEN_ONLY]
    assert shown["examples"][0]["chosen_text"] == "Barn, snowy, tawny."
    assert shown["step"]["update_rms_over_lr"] == pytest.approx(0.1)
    probes = {probe["probe"]: (probe["num_items"], probe["mean"], probe["pass_rate"]) for probe in shown["probes"]}
    assert probes == {"nll": (3, 3.0, None), "accept": (4, None, 0.75), "push_back": (2, None, 0.0)}
    assert [probe["probe"] for probe in shown["probes_parent"]] == ["nll"]
    assert (shown["verdict"]["decision"], shown["rollback"]) == ("promote", None)
    assert [event["name"] for event in shown["events"]] == ["cycle_finished"]
    assert shown["summary"]["margin"] == -0.4


def test_checkpoints_say_where_they_stand(ledger: SqlLedger, engine: Engine) -> None:
    """Base first; the head is marked; what is off the lineage has no depth."""
    promote_one(ledger)
    ledger.roll_back(drive_to(ledger, CycleState.PROBED), make_verdict(Decision.ROLL_BACK), ledger.head())
    found = [
        (row["version"], row["state"], row["is_head"], row["depth"]) for row in queries.checkpoints(engine, "test")
    ]
    assert found == [
        ("base", "base", False, 1),
        ("cycle-000001", "promoted", True, 0),
        ("cycle-000002", "rejected", False, None),
    ]


def test_the_checkpoint_of_a_cycle(ledger: SqlLedger, engine: Engine) -> None:
    """Cycle 0 is the base; a cycle without checkpoint, or a pruned one, says so."""
    promote_one(ledger)
    promote_one(ledger)
    ledger.close(drive_to(ledger, CycleState.PAIRED), Outcome.SKIPPED, "test")
    ledger.pruned("cycle-000001")
    assert queries.version_of_cycle(engine, "test", 0) == "base"
    assert queries.version_of_cycle(engine, "test", 2) == "cycle-000002"
    with pytest.raises(UsageError, match="cycle 3 ended skipped: there is no checkpoint"):
        queries.version_of_cycle(engine, "test", 3)
    with pytest.raises(UsageError, match="was pruned"):
        queries.version_of_cycle(engine, "test", 1)
    with pytest.raises(UsageError, match="no cycle 4: cycles go from 1 to 3"):
        queries.version_of_cycle(engine, "test", 4)


def test_what_does_not_exist_is_answered_with_what_does(ledger: SqlLedger, engine: Engine) -> None:
    """An unknown run names the known ones; an unknown cycle in a new run says how to run one."""
    for query in (queries.status, queries.cycles, queries.checkpoints):
        with pytest.raises(UsageError, match="no run other; this database has: test"):
            query(engine, "other")
    with pytest.raises(UsageError, match="no cycle has run yet"):
        queries.show_cycle(engine, "test", 1)


def _measured(nll: float) -> list:  # type: ignore[type-arg]
    logps = [make_probe_result("chosen_logp", item, -nll + shift) for item, shift in (("x", 0.5), ("y", -0.5))]
    return make_probe_runs([make_probe_result("nll", "a", nll), *logps])


def _nll(results: tuple) -> float | None:  # type: ignore[type-arg]
    return next(result.value for result in results if result.probe == "nll")
