"""Every state of a cycle, in order, out of order, and with records that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    drive_to,
    make_candidate,
    make_checkpoint,
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

from daemon.domain.errors import DatabaseError, DreamdError, NonFiniteError, OffPolicyError, UsageError
from daemon.domain.hashing import batch_hash, derive_seed
from daemon.domain.records import Cycle, Draw
from daemon.domain.states import CheckpointState, CycleState, Decision, Outcome
from daemon.storage import tables
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.runs import create_run

UNFINISHED = [state for state in CycleState if state is not CycleState.FINISHED]
ROLL_BACK = make_verdict(Decision.ROLL_BACK)

MOVES: dict[str, tuple[CycleState, Callable[[SqlLedger, Cycle], Any]]] = {
    "record_sweep": (CycleState.PLANNED, lambda ledger, cycle: ledger.record_sweep(cycle, [])),
    "record_pairs": (CycleState.SWEPT, lambda ledger, cycle: ledger.record_pairs(cycle, [], [], make_diversity())),
    "claim": (CycleState.PAIRED, lambda ledger, cycle: ledger.claim(cycle, ledger.examples(cycle))),
    "record_step": (CycleState.CLAIMED, lambda ledger, cycle: ledger.record_step(cycle, make_step_report(2))),
    "record_published": (
        CycleState.STEPPED,
        lambda ledger, cycle: ledger.record_published(cycle, make_candidate(cycle)),
    ),
    "probed": (CycleState.PUBLISHED, lambda ledger, cycle: ledger.probed(cycle)),
    "promote": (CycleState.PROBED, lambda ledger, cycle: ledger.promote(cycle, make_verdict())),
    "roll_back": (CycleState.PROBED, lambda ledger, cycle: ledger.roll_back(cycle, ROLL_BACK, ledger.head())),
}


def test_a_cycle_that_is_promoted_becomes_the_head(ledger: SqlLedger) -> None:
    """From plan to promotion every state is stored, and the head's lineage is the base and this cycle."""
    cycle = drive_to(ledger, CycleState.PROBED)
    assert ledger.unfinished() == (cycle,)
    assert ledger.promote(cycle, make_verdict()) is Outcome.PROMOTED
    assert ledger.unfinished() == ()
    finished = ledger.cycle(cycle.number)
    assert (finished.state, finished.outcome, finished.reason) == (
        CycleState.FINISHED,
        Outcome.PROMOTED,
        "within every margin",
    )
    assert ledger.head() == replace(make_candidate(cycle), state=CheckpointState.PROMOTED)
    assert [checkpoint.version for checkpoint in ledger.lineage()] == ["cycle-000001", "base"]
    assert ledger.checkpoints() == ledger.lineage()[::-1]


def test_numbers_and_seeds_of_cycles_never_repeat(ledger: SqlLedger) -> None:
    """A cycle's number counts on after any outcome, and its seed is derived from the run's seed and the number."""
    seen = []
    for outcome in (Outcome.ABANDONED, Outcome.FAILED, Outcome.SKIPPED):
        cycle = drive_to(ledger, CycleState.PAIRED)
        ledger.close(cycle, outcome, "test")
        seen.append((cycle.number, cycle.seed))
    assert seen == [(number, derive_seed("cycle", 7, number)) for number in (1, 2, 3)]


def test_examples_and_step_come_back_as_they_went_in(ledger: SqlLedger) -> None:
    """What recovery reads equals, field by field, what the stages recorded."""
    scenario = make_scenario()
    pair, alone = make_example(scenario, rejected_ordinal=1), make_example(scenario, rejected_text=None)
    report = make_step_report(
        2,
        num_pairs=1,
        example_logprobs=((-2.4, -0.1 - 0.2), (-1.0, None)),
        phase=2,
        precision="bf16-stochastic",
        update_cosine=0.1 + 0.2,
        bf16_changed=0.015,
        peak_memory_bytes=5_000_000_000,
        reference_version="base",
    )
    cycle = ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
    cycle = ledger.record_plan(cycle, Draw((scenario,)))
    cycle = ledger.record_sweep(cycle, [make_completion(scenario, ordinal) for ordinal in range(2)])
    cycle = ledger.record_pairs(
        cycle, [make_judgement(0), make_judgement(1, passed=False)], [pair, alone], make_diversity()
    )
    cycle, batch = ledger.claim(cycle, [pair, alone])
    assert batch.examples == ledger.examples(cycle) == (pair, alone)
    assert batch.batch_hash == cycle.batch_hash == batch_hash("base", [pair.content_hash, alone.content_hash])
    cycle = ledger.record_step(cycle, report)
    assert ledger.step_report(cycle) == report


@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_refused_in_every_other_state(ledger: SqlLedger, name: str) -> None:
    """Each transition works from exactly one state; from any other it says so and changes nothing."""
    expected, move = MOVES[name]
    for state in UNFINISHED:
        if state is expected:
            continue
        cycle = drive_to(ledger, state)
        with pytest.raises(DreamdError, match=f"cycle {cycle.number} is {state}, not {expected}"):
            move(ledger, cycle)
        assert ledger.cycle(cycle.number) == cycle
        ledger.close(cycle, Outcome.FAILED, "test")


@pytest.mark.parametrize("outcome", Outcome)
def test_closing_depends_on_whether_the_cycle_spent_anything(ledger: SqlLedger, outcome: Outcome) -> None:
    """Abandoned and skipped only before the claim, lost only after it, failed always, and no verdict by closing."""
    for state in UNFINISHED:
        cycle = drive_to(ledger, state)
        allowed = {
            Outcome.FAILED: True,
            Outcome.LOST: state.spends,
            Outcome.ABANDONED: not state.spends,
            Outcome.SKIPPED: not state.spends,
        }.get(outcome, False)
        if not allowed:
            with pytest.raises(DreamdError, match="cannot be closed"):
                ledger.close(cycle, outcome, "because")
            assert ledger.cycle(cycle.number) == cycle
            ledger.close(cycle, Outcome.FAILED, "test")
            continue
        assert ledger.close(cycle, outcome, "because") is outcome
        assert ledger.cycle(cycle.number).reason == "because"
        assert ledger.head().version == "base"
        with pytest.raises(DreamdError, match="is finished"):
            ledger.close(cycle, outcome, "again")


def test_a_candidate_of_a_failed_cycle_is_rejected(ledger: SqlLedger) -> None:
    """No checkpoint stays a candidate once its cycle has ended."""
    cycle = drive_to(ledger, CycleState.PUBLISHED)
    ledger.close(cycle, Outcome.FAILED, "test")
    assert ledger.checkpoint(make_candidate(cycle).version).state is CheckpointState.REJECTED


def test_one_cycle_at_a_time(ledger: SqlLedger) -> None:
    """A second cycle cannot be opened, nor the head rolled back, while one is unfinished."""
    promote_one(ledger)
    drive_to(ledger, CycleState.PLANNED)
    with pytest.raises(DreamdError, match="cycle 2 is planned"):
        ledger.open_cycle(head=ledger.head(), run_seed=7, config={})
    with pytest.raises(DreamdError, match="cycle 2 is planned"):
        ledger.roll_back_head(ledger.checkpoint("base"), "test")


def test_a_cycle_starts_from_the_head_and_the_runs_seed(ledger: SqlLedger) -> None:
    """Opening a cycle on another checkpoint or with another seed is refused."""
    with pytest.raises(DreamdError, match="the head is base, not elsewhere"):
        ledger.open_cycle(head=make_checkpoint("elsewhere"), run_seed=7, config={})
    with pytest.raises(DreamdError, match="seed 7; it cannot go on with 8"):
        ledger.open_cycle(head=ledger.head(), run_seed=8, config={})


def test_scenarios_are_recorded_once(ledger: SqlLedger) -> None:
    """A cycle's plan cannot be replaced or extended."""
    cycle = drive_to(ledger, CycleState.PLANNED)
    with pytest.raises(DreamdError, match="has its scenarios already"):
        ledger.record_plan(cycle, Draw((make_scenario("another"),)))


def test_another_policys_work_is_refused(ledger: SqlLedger) -> None:
    """Completions and examples of any other version than the parent do not get in (I6)."""
    scenario = make_scenario()
    cycle = drive_to(ledger, CycleState.PLANNED, [scenario])
    with pytest.raises(OffPolicyError, match="completion 0 was written by older"):
        ledger.record_sweep(cycle, [make_completion(scenario, policy_version="older")])
    cycle = ledger.record_sweep(cycle, [make_completion(scenario)])
    stale = make_example(scenario, policy_version="older")
    cycle = ledger.record_pairs(cycle, [], [stale], make_diversity())
    with pytest.raises(OffPolicyError, match="was written by older"):
        ledger.claim(cycle, [stale])
    assert ledger.refuse([scenario]) == {}


def test_a_claim_is_of_the_recorded_examples(ledger: SqlLedger) -> None:
    """Fewer, more or reordered examples than were recorded are refused."""
    cycle = drive_to(ledger, CycleState.PAIRED)
    examples = ledger.examples(cycle)
    for other in (examples[:1], examples[::-1], ()):
        with pytest.raises(DreamdError, match="not those recorded"):
            ledger.claim(cycle, other)
    assert ledger.cycle(cycle.number) == cycle


def test_a_claim_needs_examples(ledger: SqlLedger) -> None:
    """A cycle without examples is skipped, not claimed."""
    cycle = ledger.record_pairs(drive_to(ledger, CycleState.SWEPT), [], [], make_diversity())
    with pytest.raises(DreamdError, match="no examples to claim"):
        ledger.claim(cycle, [])


def test_a_step_with_a_number_that_is_none_is_refused(ledger: SqlLedger) -> None:
    """NaN never reaches the database, and a step of another batch size neither."""
    cycle = drive_to(ledger, CycleState.CLAIMED)
    with pytest.raises(NonFiniteError, match="loss is nan"):
        ledger.record_step(cycle, make_step_report(2, loss=float("nan")))
    with pytest.raises(DreamdError, match="is of 3 examples, not 2"):
        ledger.record_step(cycle, make_step_report(3))
    assert ledger.cycle(cycle.number) == cycle


@pytest.mark.parametrize("field, value", [("cycle_number", 9), ("parent_version", "x"), ("batch_hash", "0")])
def test_a_checkpoint_of_another_lineage_is_refused(ledger: SqlLedger, field: str, value: object) -> None:
    """Only the cycle's own candidate can be published for it (I3)."""
    cycle = drive_to(ledger, CycleState.STEPPED)
    with pytest.raises(DreamdError, match="its cycle has"):
        ledger.record_published(cycle, make_candidate(cycle, **{field: value}))
    assert ledger.cycle(cycle.number) == cycle


def test_a_judgement_of_an_unknown_completion_is_refused(ledger: SqlLedger) -> None:
    """Judging what was never swept records nothing at all."""
    cycle = drive_to(ledger, CycleState.SWEPT)
    with pytest.raises(DreamdError, match="no completion 99"):
        ledger.record_pairs(cycle, [make_judgement(0), make_judgement(99)], [], make_diversity())
    assert ledger.cycle(cycle.number) == cycle


def test_an_example_of_an_unknown_scenario_is_refused(ledger: SqlLedger, engine: Engine) -> None:
    """The database itself refuses an example whose scenario the cycle does not have."""
    cycle = drive_to(ledger, CycleState.SWEPT)
    with pytest.raises(DatabaseError):
        ledger.record_pairs(
            cycle, [make_judgement(0)], [make_example(make_scenario("never planned"))], make_diversity()
        )
    with reading(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count(tables.completions.c.passed))) == 0


def test_a_promotion_needs_the_parent_to_be_the_head(ledger: SqlLedger, engine: Engine) -> None:
    """A head moved by another hand while the cycle ran blocks promotion and rollback."""
    promote_one(ledger)
    cycle = drive_to(ledger, CycleState.PROBED)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.runs).values(head_version="base"))
    with pytest.raises(DreamdError, match="the head is base, not cycle-000001"):
        ledger.promote(cycle, make_verdict())
    with pytest.raises(DreamdError, match="the head is base, not cycle-000001"):
        ledger.roll_back(cycle, ROLL_BACK, ledger.checkpoint("base"))


def test_a_verdict_does_what_it_says(ledger: SqlLedger) -> None:
    """A verdict to roll back never promotes, and the other way round."""
    cycle = drive_to(ledger, CycleState.PROBED)
    with pytest.raises(DreamdError, match="cannot promote"):
        ledger.promote(cycle, ROLL_BACK)
    with pytest.raises(DreamdError, match="cannot roll back"):
        ledger.roll_back(cycle, make_verdict(), ledger.head())


def test_a_watchdog_rollback(ledger: SqlLedger, engine: Engine) -> None:
    """It moves the head to the target, rejects the candidate, ends the cycle and waits for its verification."""
    first = promote_one(ledger)
    cycle = drive_to(ledger, CycleState.PROBED)
    rollback = ledger.roll_back(cycle, ROLL_BACK, ledger.checkpoint("base"))
    assert (rollback.cycle_number, rollback.from_version, rollback.to_version) == (2, "cycle-000002", "base")
    assert ledger.head().version == "base"
    assert ledger.checkpoint("cycle-000002").state is CheckpointState.REJECTED
    assert ledger.checkpoint(str(first.candidate_version)).state is CheckpointState.PROMOTED
    assert ledger.cycle(2).outcome is Outcome.ROLLED_BACK
    assert ledger.pending_rollbacks() == (rollback,)
    with reading(engine) as connection:
        event = connection.execute(sa.select(tables.events)).one()
    assert (event.name, event.level, event.cycle, event.payload["to"]) == ("rolled_back", "warning", 2, "base")
    ledger.rollback_verified(rollback, {"nll_items_equal": 48})
    assert ledger.pending_rollbacks() == ()
    with pytest.raises(DreamdError, match="verified already"):
        ledger.rollback_verified(rollback, {})


def test_a_rollback_goes_to_an_ancestor(ledger: SqlLedger) -> None:
    """A checkpoint that was rejected, or the candidate itself, is no target."""
    rejected = drive_to(ledger, CycleState.PROBED)
    ledger.roll_back(rejected, ROLL_BACK, ledger.head())
    cycle = drive_to(ledger, CycleState.PROBED)
    for version in ("cycle-000001", "cycle-000002"):
        with pytest.raises(DreamdError, match="is no ancestor"):
            ledger.roll_back(cycle, ROLL_BACK, ledger.checkpoint(version))
    with pytest.raises(UsageError, match="cycle-000001 is rejected"):
        ledger.close(cycle, Outcome.FAILED, "test")
        ledger.roll_back_head(ledger.checkpoint("cycle-000001"), "test")


def test_an_operators_rollback_and_back_again(ledger: SqlLedger) -> None:
    """Between cycles the head can go to any checkpoint that was promoted once, and forward again."""
    promote_one(ledger)
    promote_one(ledger)
    rollback = ledger.roll_back_head(ledger.checkpoint("cycle-000001"), "too eager")
    assert (rollback.cycle_number, rollback.from_version) == (None, "cycle-000002")
    assert [checkpoint.version for checkpoint in ledger.lineage()] == ["cycle-000001", "base"]
    with pytest.raises(UsageError, match="is the head already"):
        ledger.roll_back_head(ledger.head(), "test")
    ledger.roll_back_head(ledger.checkpoint("cycle-000002"), "it was right")
    assert len(ledger.lineage()) == 3


def test_what_is_needed_is_not_pruned(ledger: SqlLedger) -> None:
    """Head, base and candidates keep their files; a pruned checkpoint stays in the lineage."""
    promote_one(ledger)
    promote_one(ledger)
    cycle = drive_to(ledger, CycleState.PUBLISHED)
    for version in ("base", "cycle-000002", str(cycle.candidate_version)):
        with pytest.raises(DreamdError, match="its files must stay"):
            ledger.pruned(version)
    ledger.pruned("cycle-000001")
    states = [checkpoint.state for checkpoint in ledger.lineage()]
    assert states == [CheckpointState.PROMOTED, CheckpointState.PRUNED, CheckpointState.BASE]


def test_the_base_is_registered_once(ledger: SqlLedger) -> None:
    """The same base again is no change; another base is refused; a cycle's checkpoint is none."""
    ledger.register_base(make_checkpoint(state=CheckpointState.CANDIDATE))
    assert ledger.head().state is CheckpointState.BASE
    with pytest.raises(DreamdError, match="has another base already: base"):
        ledger.register_base(make_checkpoint("base", weights_digest="other"))
    with pytest.raises(DreamdError, match="is not a base"):
        ledger.register_base(make_checkpoint("c", cycle_number=1, parent_version="base"))


def test_a_run_without_base_says_so(engine: Engine) -> None:
    """Asking for the head of a run that was never given a base names the fix."""
    create_run(engine, "bare", 1, "models/small", {}, [])
    with pytest.raises(DreamdError, match="dreamd init"):
        SqlLedger.acquire(engine, "bare").head()


def test_what_does_not_exist_is_named(ledger: SqlLedger) -> None:
    """Unknown cycles and checkpoints are errors that name them."""
    with pytest.raises(DreamdError, match="no checkpoint nowhere"):
        ledger.checkpoint("nowhere")
    with pytest.raises(DreamdError, match="no cycle 5"):
        ledger.cycle(5)
    cycle = drive_to(ledger, CycleState.CLAIMED)
    with pytest.raises(DreamdError, match="has no step"):
        ledger.step_report(cycle)


def test_runs_are_made_once(engine: Engine) -> None:
    """Creating a run again returns it; with another seed it is refused; acquiring an unknown one lists those known."""
    first = create_run(engine, "one", 1, "models/small", {}, [("a", "a")])
    assert create_run(engine, "one", 1, "models/small", {}, [("a", "a"), ("b", "b")]) == first
    with pytest.raises(UsageError, match="exists with seed 1, not 2"):
        create_run(engine, "one", 2, "models/small", {}, [])
    with pytest.raises(UsageError, match="no run two; this database has: one"):
        SqlLedger.acquire(engine, "two")
    asked = [make_scenario(text, content_hash=text) for text in "abc"]
    assert set(SqlLedger.acquire(engine, "one").refuse(asked)) == {"a", "b"}


def test_runs_do_not_see_each_other(engine: Engine, ledger: SqlLedger) -> None:
    """Two runs in one database have their own cycles, checkpoints and claims, even of the same content."""
    create_run(engine, "other", 7, "models/small", {}, [])
    other = SqlLedger.acquire(engine, "other")
    other.register_base(make_checkpoint())
    scenarios = [make_scenario("the same in both")]
    for each in (ledger, other):
        cycle = drive_to(each, CycleState.CLAIMED, scenarios)
        assert cycle.number == 1
    ledger.close(ledger.cycle(1), Outcome.LOST, "test")
    assert other.cycle(1).state is CycleState.CLAIMED


def test_notes_beside_a_cycle(ledger: SqlLedger, engine: Engine) -> None:
    """Seconds accumulate by stage; engine checks and events are stored, what JSON cannot hold made harmless."""
    cycle = drive_to(ledger, CycleState.PLANNED)
    ledger.record_seconds(cycle, {"sweep": 1.5})
    ledger.record_seconds(cycle, {"step": 2.0})
    ledger.record_engine_check(make_engine_check(max_abs_diff=float("inf")), "vllm", cycle)
    ledger.event("odd", level="error", cycle=cycle, value=float("nan"), text="a\0b\ud800", state=cycle.state)
    with reading(engine) as connection:
        assert connection.scalar(sa.select(tables.cycles.c.seconds)) == {"sweep": 1.5, "step": 2.0}
        check = connection.execute(sa.select(tables.engine_checks)).one()
        payload = connection.scalar(sa.select(tables.events.c.payload))
    assert (check.engine, check.max_abs_diff, check.passed, check.cycle) == ("vllm", None, True, 1)
    assert payload == {"value": None, "text": "a\ufffdb\ufffd", "state": "planned"}


def test_probe_results_are_kept_as_first_measured(ledger: SqlLedger) -> None:
    """Recording a probe again keeps the first value and adds only what is missing."""
    first = make_probe_result(value=3.25, detail={"tokens": 40})
    answer = make_probe_result("accept", "a-1", 1.0, passed=True)
    ledger.record_probes("base", make_probe_runs([first]), None)
    ledger.record_probes("base", make_probe_runs([make_probe_result(value=9.0), answer]), None)
    assert ledger.probe_results("base") == (answer, first)
