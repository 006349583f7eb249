"""The watchdog's history, now and as an earlier verdict saw it, on both databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    drive_to,
    make_candidate,
    make_probe_result,
    make_probe_run,
    make_scenario,
    make_step_report,
    make_verdict,
)
from sqlalchemy import Engine

from daemon.domain.errors import UsageError
from daemon.domain.lineage import kept
from daemon.domain.probing import ProbeRun
from daemon.domain.records import Cycle
from daemon.domain.states import CheckpointState, CycleState, Decision, Outcome, ProbeReason, RollbackTarget, Side
from daemon.domain.verdicts import Anchor, Evidence, Judged, PassCount, Verdict
from daemon.storage import tables
from daemon.storage.judged import stored_verdicts
from daemon.storage.ledger import SqlLedger


@pytest.fixture
def ledger(ledger: SqlLedger, engine: Engine) -> SqlLedger:
    """Anchors every 2 promoted cycles, and 6 judged items for a reference."""
    return SqlLedger.acquire(engine, "test", baked_after=2, reference_items=6)


def answers(failures: int, num_items: int = 4, turn: int = 0, **changes: Any) -> ProbeRun:
    """`accept` on the prompts of `turn`: the first `failures` of them failed."""
    items = [
        make_probe_result("accept", f"{turn}-{index}", 1.0, passed=index >= failures) for index in range(num_items)
    ]
    return make_probe_run("accept", *items, turn=turn, **changes)


def fixed(nll: float) -> list[ProbeRun]:
    return [
        make_probe_run("nll", make_probe_result("nll", "a", nll)),
        make_probe_run("chosen_logp", make_probe_result("chosen_logp", "x", -nll)),
    ]


def judge_one(
    ledger: SqlLedger,
    failures: int = 1,
    to_version: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    runs: Sequence[ProbeRun] = (),
) -> Judged:
    """One whole cycle; what the watchdog saw of it right before its verdict, and the verdict."""
    cycle = drive_to(ledger, CycleState.CLAIMED)
    number = cycle.number
    cycle = ledger.record_step(cycle, make_step_report(2, update_rms=number * 1e-6, chosen_logprob=-2.0 - number))
    cycle = ledger.record_published(cycle, make_candidate(cycle))
    candidate = str(cycle.candidate_version)
    ledger.record_probes(candidate, [*fixed(3.0 + number / 16), answers(failures, turn=number), *runs], cycle)
    cycle = ledger.probed(cycle)
    verdict = make_verdict(evidence=evidence or {"detectors": {"after": number}})
    if to_version is not None:
        verdict = Verdict(Decision.ROLL_BACK, "worse", RollbackTarget.A1, verdict.evidence, to_version)
    seen = Judged(
        number,
        candidate,
        cycle.parent_version,
        ledger.history(cycle),
        Evidence(ledger.step_report(cycle), ledger.probe_results(candidate)),
        verdict,
    )
    if to_version is None:
        ledger.promote(cycle, verdict)
        prune(ledger)
    else:
        ledger.roll_back(cycle, verdict, ledger.checkpoint(to_version))
    return seen


def prune(ledger: SqlLedger) -> None:
    """Keep what the daemon keeps, the newest checkpoint alone beside the anchors."""
    keep = kept(ledger.lineage(), 2, 1)
    for checkpoint in ledger.checkpoints():
        if checkpoint.state in (CheckpointState.PROMOTED, CheckpointState.REJECTED) and checkpoint.version not in keep:
            ledger.pruned(checkpoint.version)


def test_the_history_has_anchors_and_batches(ledger: SqlLedger) -> None:
    """After 7 promoted cycles, baked every 2: A1 is cycle 4, cycle 2 and the base are older anchors still on disk."""
    for _ in range(7):
        judge_one(ledger)
    history = ledger.history(drive_to(ledger, CycleState.PLANNED))
    assert history.parent_anchor == Anchor("cycle-000007", 7, 7)
    assert history.anchors == (Anchor("cycle-000004", 4, 4), Anchor("cycle-000002", 2, 2), Anchor("base", 0, 0))
    assert history.batch_logprobs == tuple((-2.0 - number, -2.0) for number in range(1, 8))
    assert history.detectors == {"after": 7}


def test_a1_has_its_files_now_and_in_a_replay(ledger: SqlLedger, engine: Engine) -> None:
    """A1 = cycle 4 is judged against; once its files are gone A1 is cycle 2, and the earlier verdict still saw 4."""
    for _ in range(6):
        judge_one(ledger)
    seen = judge_one(ledger)
    ledger.pruned("cycle-000004")
    history = ledger.history(drive_to(ledger, CycleState.PLANNED))
    assert history.anchors == (Anchor("cycle-000002", 2, 2), Anchor("base", 0, 0))
    assert history.baked == ledger.probe_results("cycle-000002")
    (judged,) = stored_verdicts(engine, "test", 7, baked_after=2, reference_items=6)
    assert judged == seen
    assert judged.history.anchors[0].version == "cycle-000004"
    assert judged.history.baked == ledger.probe_results("cycle-000004")


def test_push_back_pairs_have_margins_of_their_own(ledger: SqlLedger) -> None:
    """Of three batches two have three push-back pairs; margins are by hand, and the accept pairs do not count."""

    def batch(num_push_back: int, rejected: float) -> Cycle:
        sides = [Side.PUSH_BACK] * num_push_back + [Side.ACCEPT] * 2
        number = ledger.next_cycle_number()
        scenarios = [make_scenario(f"Cycle {number}, {place}.", side=side) for place, side in enumerate(sides)]
        cycle = drive_to(ledger, CycleState.CLAIMED, scenarios)
        logprobs = ((-2.0, rejected),) * num_push_back + ((-9.0, -1.0),) * 2
        return ledger.record_step(cycle, make_step_report(len(sides), example_logprobs=logprobs))

    for num_push_back, rejected in ((3, -1.0), (2, -1.0)):
        cycle = batch(num_push_back, rejected)
        cycle = ledger.probed(ledger.record_published(cycle, make_candidate(cycle)))
        ledger.promote(cycle, make_verdict())
    cycle = batch(4, -5.0)
    history = ledger.history(cycle)
    assert (history.push_back_margin, history.push_back_margins) == (3.0, (-1.0,))


@pytest.mark.parametrize("section", ["training", "scenarios", "preferences", "sweep"])
def test_changed_settings_begin_the_history_of_batches_anew(ledger: SqlLedger, engine: Engine, section: str) -> None:
    """Of five cycles two ran with what cycle 6 runs with: the steps since then count; other sections do not matter."""
    for _ in range(5):
        judge_one(ledger)
    with engine.begin() as connection:
        for number in range(1, 7):
            changed = {section: {"of": "now" if number in (1, 2, 4, 5, 6) else "then"}, "probes": {"items": number}}
            of_cycle = tables.cycles.c.number == number
            connection.execute(sa.update(tables.cycles).where(of_cycle).values(config=changed))
    cycle = drive_to(ledger, CycleState.PLANNED)
    assert cycle.number == 6
    with engine.begin() as connection:
        changed = {section: {"of": "now"}, "probes": {}}
        connection.execute(sa.update(tables.cycles).where(tables.cycles.c.number == 6).values(config=changed))
    history = ledger.history(cycle)
    assert history.batch_logprobs == ((-6.0, -2.0), (-7.0, -2.0))
    assert history.update_rms_over_lr == pytest.approx((0.4, 0.5))


@pytest.mark.parametrize(
    ("column", "value"), [("objective", "dpop"), ("optimizer", "muon"), ("precision", "bf16"), ("phase", 2)]
)
def test_another_kind_of_step_begins_the_history_of_batches_anew(
    ledger: SqlLedger, engine: Engine, column: str, value: object
) -> None:
    """A governor's objective or a plan's next phase counts from the first such step; before it steps, all do."""
    for _ in range(3):
        judge_one(ledger)
    cycle = drive_to(ledger, CycleState.CLAIMED)
    assert len(ledger.history(cycle).batch_logprobs) == 3
    ledger.record_step(cycle, make_step_report(2))
    assert len(ledger.history(cycle).batch_logprobs) == 3
    with engine.begin() as connection:
        of_cycles = tables.steps.c.cycle.in_([3, 4])
        connection.execute(sa.update(tables.steps).where(of_cycles).values({column: value}))
    assert ledger.history(cycle).batch_logprobs == ((-5.0, -2.0),)


def test_the_chosen_answers_of_a_series_are_the_same(ledger: SqlLedger) -> None:
    """A suite added before cycle 3 of less likely answers: the series is that of cycle 2, which was measured with it.

    Before the candidate is measured its parent's items count; an item that the candidate lacks does not.
    """

    def likely(**values: float) -> ProbeRun:
        return make_probe_run("chosen_logp", *(make_probe_result("chosen_logp", *each) for each in values.items()))

    for _ in range(2):
        judge_one(ledger)  # "x" is -3.0625, -3.125
    ledger.record_probes("cycle-000002", [likely(y=-9.0, z=-1.0)], None)
    cycle = drive_to(ledger, CycleState.PUBLISHED)
    assert ledger.history(cycle).chosen_logp == (pytest.approx(-13.125 / 3),)
    ledger.record_probes("cycle-000003", [likely(x=-3.0, y=-8.5)], cycle)
    assert ledger.history(cycle).chosen_logp == (-6.0625,)
    ledger.promote(ledger.probed(cycle), make_verdict())
    cycle = drive_to(ledger, CycleState.PUBLISHED)
    assert ledger.history(cycle).chosen_logp == (-6.0625, -5.75)
    ledger.record_probes("cycle-000004", [likely(w=-1.0)], cycle)
    assert ledger.history(cycle).chosen_logp == ()


def test_the_history_of_a_first_cycle(ledger: SqlLedger) -> None:
    """There is one anchor, the base, and nothing to compare a batch or a rate with."""
    history = ledger.history(drive_to(ledger, CycleState.PLANNED))
    assert history.parent_anchor == Anchor("base", 0, 0)
    assert history.anchors == (Anchor("base", 0, 0),)
    assert (history.batch_logprobs, history.references, history.detectors) == ((), {}, {})


def test_references_pool_from_the_last_baked_checkpoint_on(ledger: SqlLedger) -> None:
    """The base counts whatever it has; A1 = cycle 4 and cycle 3 make 8 items of 6 wanted, 4 + 1 of them failed."""
    ledger.record_probes("base", [answers(1, 3, reason=ProbeReason.ANCHOR)], None)
    for failures in (0, 3, 1, 4, 2, 2):
        judge_one(ledger, failures)
    references = ledger.history(drive_to(ledger, CycleState.PLANNED)).references
    assert references == {"accept": {"base": PassCount(1, 3), "baked": PassCount(5, 8)}}


def test_too_few_items_are_no_baked_reference(ledger: SqlLedger) -> None:
    """With A1 = cycle 2, cycles 2 and 1 make 8 items; with A1 = the base there is no baked reference at all."""
    ledger.record_probes("base", [answers(1, 3)], None)
    for _ in range(3):
        judge_one(ledger)
    cycle = drive_to(ledger, CycleState.PLANNED)
    assert ledger.history(cycle).references == {"accept": {"base": PassCount(1, 3)}}
    ledger.close(cycle, Outcome.ABANDONED, "test")
    judge_one(ledger)
    assert ledger.history(drive_to(ledger, CycleState.PLANNED)).references == {
        "accept": {"base": PassCount(1, 3), "baked": PassCount(2, 8)}
    }


def test_a_reference_needs_enough_items(ledger: SqlLedger, engine: Engine) -> None:
    """With 9 items wanted and 8 there the baked reference is absent; with 8 wanted it is there."""
    for _ in range(4):
        judge_one(ledger)
    cycle = drive_to(ledger, CycleState.PLANNED)
    for wanted, expected in ((9, {}), (8, {"accept": {"baked": PassCount(2, 8)}})):
        found = SqlLedger.acquire(engine, "test", baked_after=2, reference_items=wanted).history(cycle).references
        assert found == expected


def test_references_are_of_comparable_judged_answers(ledger: SqlLedger) -> None:
    """Another suite's answers, fresh samples and those that could not be judged do not count."""
    unjudged = make_probe_run("code", *(make_probe_result("code", f"{index}", 1.0) for index in range(8)))
    fresh = replace(
        answers(6, 6, turn=50),
        reason=ProbeReason.CONFIRMATION,
        suite_version="of the reserve",
        results=tuple(make_probe_result("accept.confirmation", f"{index}", 0.0, passed=False) for index in range(6)),
    )
    ledger.record_probes("base", [answers(2, 4, suite_version="another"), answers(1, 3, turn=9), unjudged, fresh], None)
    references = ledger.history(drive_to(ledger, CycleState.PLANNED)).references
    assert references == {"accept": {"base": PassCount(1, 3)}}


def test_detectors_start_anew_after_any_rollback(ledger: SqlLedger) -> None:
    """Empty right after the watchdog's or an operator's rollback, also forward; then those of the next promotion."""

    def detectors() -> Mapping[str, Any]:
        cycle = drive_to(ledger, CycleState.PLANNED)
        ledger.close(cycle, Outcome.ABANDONED, "test")
        return ledger.history(cycle).detectors

    assert detectors() == {}
    judge_one(ledger)
    second = judge_one(ledger)
    assert detectors() == {"after": second.cycle_number}
    judge_one(ledger, to_version=second.candidate_version)
    assert (ledger.head().version, detectors()) == (second.candidate_version, {})
    third = judge_one(ledger)
    assert detectors() == {"after": third.cycle_number}
    ledger.roll_back_head(ledger.checkpoint("base"), "too eager")
    assert detectors() == {}
    ledger.roll_back_head(ledger.checkpoint(third.candidate_version), "it was right")
    assert detectors() == {}
    assert judge_one(ledger).history.detectors == {}
    assert detectors() != {}


def lived(ledger: SqlLedger) -> Iterator[Judged]:
    """A run with everything that could make a replay see too much: late anchors, rollbacks, deleted files."""
    ledger.record_probes("base", [*fixed(3.0), answers(1, 3)], None)
    for failures in (0, 1, 2, 1, 0):
        yield judge_one(ledger, failures)
    # Measured later than the verdicts above: more of the base, and the head while nothing is trained.
    ledger.record_probes("base", [answers(3, 4, turn=90, reason=ProbeReason.ANCHOR)], None)
    ledger.record_probes(ledger.head().version, [answers(4, 4, turn=91, reason=ProbeReason.EVALUATION)], None)
    yield judge_one(ledger, 2)
    # An anchor measured within a cycle, between its probes and its verdict.
    yield judge_one(
        ledger, 4, to_version="cycle-000002", runs=[make_probe_run("kl", make_probe_result("kl", "k", 0.5))]
    )
    yield judge_one(ledger)
    ledger.roll_back_head(ledger.checkpoint("base"), "from the beginning")
    for _ in range(5):
        yield judge_one(ledger)
    ledger.record_probes("base", [answers(0, 4, turn=92, suite_version="a new suite")], None)
    yield judge_one(ledger)


def test_a_stored_verdict_sees_what_it_saw(ledger: SqlLedger, engine: Engine) -> None:
    """For every verdict of a long run: the same history, evidence and verdict as right before it was made."""
    seen = list(lived(ledger))
    drive_to(ledger, CycleState.PLANNED)
    stored = list(stored_verdicts(engine, "test", baked_after=2, reference_items=6))
    assert [judged.cycle_number for judged in stored] == list(range(1, 15))
    for found, expected in zip(stored, seen, strict=True):
        assert found == expected, expected.cycle_number
    pruned = {checkpoint.version for checkpoint in ledger.checkpoints() if checkpoint.state is CheckpointState.PRUNED}
    gone = [judged for judged in seen if {anchor.version for anchor in judged.history.anchors} & pruned]
    assert gone, "some verdict saw an anchor whose files are gone by now"


def test_replay_begins_where_it_is_told(ledger: SqlLedger, engine: Engine) -> None:
    """Cycles before the first and those without a verdict are left out; an unknown run says so."""
    judge_one(ledger)
    ledger.close(drive_to(ledger, CycleState.SWEPT), Outcome.SKIPPED, "nothing to learn")
    judge_one(ledger)
    judge_one(ledger)
    assert [judged.cycle_number for judged in stored_verdicts(engine, "test")] == [1, 3, 4]
    assert [judged.cycle_number for judged in stored_verdicts(engine, "test", 2)] == [3, 4]
    with pytest.raises(UsageError, match="no run other"):
        list(stored_verdicts(engine, "other"))


def test_the_settings_of_a_verdict_are_those_of_its_cycle(ledger: SqlLedger, engine: Engine) -> None:
    """Without a word about anchors they come from the configuration stored with the cycle, else the defaults."""
    for _ in range(4):
        judge_one(ledger)
    judge_one(ledger)
    (judged,) = stored_verdicts(engine, "test", 5)
    assert [anchor.version for anchor in judged.history.anchors] == ["base"]
    with engine.begin() as connection:
        connection.execute(
            sa.update(tables.cycles).values(config={"watchdog": {"baked_after": 2, "reference_items": 8}})
        )
    (judged,) = stored_verdicts(engine, "test", 5)
    assert [anchor.version for anchor in judged.history.anchors] == ["cycle-000002", "base"]
    assert judged.history.references["accept"]["baked"] == PassCount(2, 8)


def test_a_verdict_of_an_earlier_schema_can_be_judged_again(ledger: SqlLedger, engine: Engine) -> None:
    """It sees every result of no probe run and the anchors that are always kept, and where its rollback went."""
    for _ in range(6):
        judge_one(ledger)
    judge_one(ledger, to_version="cycle-000004")
    for _ in range(4):
        judge_one(ledger)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.probe_results).values(probe_run_id=None))
        connection.execute(sa.update(tables.verdicts).values(last_probe_run=None, to_version=None))
        connection.execute(sa.update(tables.checkpoints).values(pruned_after=11))
    (judged, *_) = stored_verdicts(engine, "test", 7, baked_after=2)
    assert judged.verdict.to_version == "cycle-000004"
    assert [anchor.version for anchor in judged.history.anchors] == ["cycle-000004", "cycle-000002", "base"]
    assert [result.item for result in judged.history.parent if result.probe == "nll"] == ["a"]
    assert judged.history.references == {}
