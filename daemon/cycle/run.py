"""One dream cycle.

    sample -> sweep -> judge and pair -> CLAIM -> one step -> publish -> probe -> verdict
                                                                   ^        |-> promote: the candidate is the head
                                                     fresh prompts `--------|-> suspect: look again
                                                                            `-> roll back: an earlier one is live

Each arrow is a committed state. Nothing is spent before the claim; after it, nothing is ever used again. A killed
process is repaired by `cycle.recover` at the next start, so there is no other clean-up to forget.
"""

from __future__ import annotations

from dataclasses import replace

from daemon.cycle.measuring import confirm, evidence_of, measure_beside, measure_candidate
from daemon.cycle.mending import mend
from daemon.cycle.restore import find_anchor, roll_back
from daemon.cycle.retain import retain
from daemon.cycle.stages import Stages
from daemon.domain import failpoints
from daemon.domain.diversity import measure
from daemon.domain.errors import (
    CheckpointError,
    DiskError,
    DreamdError,
    FencedError,
    NonFiniteError,
    StepMemoryError,
    StopRequested,
)
from daemon.domain.records import Adjustments, Batch, Checkpoint, Cycle, ImportedSource, StepReport
from daemon.domain.states import CycleState, ImportKind, Outcome
from daemon.domain.verdicts import Suspicion, Verdict
from daemon.ports import Catalogue

GOVERNOR_WINDOW = 40
"""Finished cycles that the governor looks back on."""

_NOTHING_TO_LEARN = "nothing to learn: every answer passed, could not be judged, or gave no usable pair"


class _WithoutConversations:
    """The catalogue while nobody can judge conversations: drawing them would use them up for nothing."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.refuse = catalogue.refuse
        self.resting = catalogue.resting
        self._sources = catalogue.sources

    def sources(self) -> tuple[ImportedSource, ...]:
        return tuple(source for source in self._sources() if source.kind is not ImportKind.CONVERSATION)


def run_cycle(stages: Stages) -> Outcome:
    """Run one dream cycle; the live policy ends promoted, rolled back or unchanged.

    Raises:
        StopRequested: the daemon must stop; before the claim the cycle is abandoned, after publishing it waits.
        DreamdError: a stage failed; the cycle is recorded as failed, or waits for the next start once published.
    """
    stages.seconds.clear()
    head = stages.ledger.head()
    cycle, adjustments = _open(stages, head)
    try:
        outcome = _dream(stages, cycle, head, adjustments)
    except StopRequested:
        _close_unpublished(stages, cycle.number, Outcome.ABANDONED, "stopped before the claim")
        raise
    except FencedError:
        raise  # another daemon owns the run: nothing may be written any more, not even this
    except NonFiniteError as error:
        # Expected now and then, and the batch is spent: the next cycle has other examples.
        _close_unpublished(stages, cycle.number, Outcome.FAILED, str(error))
        stages.policy.restore(head)
        return Outcome.FAILED
    except (DiskError, StepMemoryError) as error:
        _close_unpublished(stages, cycle.number, Outcome.LOST, str(error))
        if stages.ledger.cycle(cycle.number).outcome is not Outcome.LOST or _lost_before(stages):
            raise
        # Once can be anything: the next cycle has other examples, and starts only if there is room on the disk.
        stages.policy.restore(head)
        return Outcome.LOST
    except Exception as error:
        _close_unpublished(stages, cycle.number, Outcome.FAILED, _reason(error))
        raise
    report_finished(stages, cycle.number, outcome)
    return outcome


def _open(stages: Stages, head: Checkpoint) -> tuple[Cycle, Adjustments]:
    """Let the governor decide, and open the cycle under what it and the breaker say."""
    ledger, governor = stages.ledger, stages.governor
    number, known = ledger.next_cycle_number(), ledger.governor_decisions()
    decisions = governor.decide(number, ledger.records(GOVERNOR_WINDOW), known)
    adjustments = stages.breaker.adjust(ledger.breaker(), governor.adjustments(number, (*known, *decisions)))
    cycle = ledger.open_cycle(
        head=head, run_seed=stages.run_seed, config=stages.config, adjustments=adjustments, decisions=decisions
    )
    for decision in decisions:
        stages.observer.log(
            "governor_decided", cycle=number, knob=str(decision.knob), applied=decision.applied, reason=decision.reason
        )
    return cycle, adjustments


def _dream(stages: Stages, cycle: Cycle, head: Checkpoint, adjustments: Adjustments) -> Outcome:
    ledger, observer = stages.ledger, stages.observer
    stages.sync_engine(head, cycle)  # before sampling: some scenarios are the policy's own
    with stages.stage(cycle, "sample") as progress:
        draw = stages.source.sample(
            cycle.number,
            cycle.seed,
            ledger if stages.preferences.judges_without_rule() else _WithoutConversations(ledger),
            lambda requests, seed: stages.sweeper.write(requests, seed, progress),
            stages.sweeper.misfit,
            adjustments,
        )
        cycle = ledger.record_plan(cycle, draw)
    for name, payload in draw.events:
        observer.log(name, cycle=cycle.number, **payload)
    scenarios = draw.scenarios
    with stages.stage(cycle, "sweep") as progress:
        failpoints.hit("cycle.sweep")
        completions = stages.sweeper.sweep(scenarios, head.version, cycle.seed, progress)
        cycle = _committed(stages, ledger.record_sweep(cycle, completions))
    with stages.stage(cycle, "judge") as progress:
        judgements = stages.preferences.judge(scenarios, completions, progress)
        examples = stages.preferences.pair(scenarios, completions, judgements)
        cycle = _committed(stages, ledger.record_pairs(cycle, judgements, examples, measure(scenarios, examples)))
    if not examples:
        return ledger.close(cycle, Outcome.SKIPPED, _NOTHING_TO_LEARN)

    reference = _reference(stages, cycle, adjustments)  # before the claim: a damaged anchor must not cost a batch
    observer.check_stop()  # the last moment at which stopping costs nothing
    with stages.stage(cycle, "step"):
        cycle, batch = ledger.claim(cycle, examples)  # committed before the optimizer moves: never repeated
        _committed(stages, cycle)
        failpoints.hit("cycle.step")
        report = stages.policy.step(replace(batch, reference=reference, adjustments=adjustments))
        cycle = _committed(stages, ledger.record_step(cycle, report))
        _tell_halved(stages, cycle, report)
    cycle, candidate = _publish(stages, cycle, head, batch, report)
    return evaluate(stages, cycle, candidate)


def _publish(
    stages: Stages, cycle: Cycle, head: Checkpoint, batch: Batch, report: StepReport
) -> tuple[Cycle, Checkpoint]:
    """Publish what the step made; the probes of the trainer run meanwhile, and are recorded after it."""
    version = version_of(cycle)
    with stages.stage(cycle, "publish"):
        publication = stages.store.begin(
            version,
            stages.policy.snapshot(),
            cycle_number=cycle.number,
            parent=head,
            batch_hash=batch.batch_hash,
            step=report,
        )
    stages.policy.adopt(version)
    try:
        runs = measure_beside(stages, cycle)
    finally:  # whatever ended the probes: what is being written becomes a checkpoint that the next start goes on with
        with stages.stage(cycle, "publish"):
            candidate = publication.result()
        cycle = _committed(stages, stages.ledger.record_published(cycle, candidate))
    stages.ledger.record_probes(version, runs, cycle)
    return cycle, candidate


def _reference(stages: Stages, cycle: Cycle, adjustments: Adjustments) -> Checkpoint | None:
    """The verified anchor that the cycle's objective compares with, if it does."""
    anchor = stages.policy.reference(cycle.number, adjustments)
    if anchor is None:
        return None
    reference = find_anchor(stages, anchor)
    try:
        stages.store.open(reference)
    except CheckpointError as error:
        mend(stages, reference, str(error))
        reference = find_anchor(stages, anchor)  # an older one, if of this one the image alone could be saved
        stages.store.open(reference)
    return reference


def _tell_halved(stages: Stages, cycle: Cycle, report: StepReport) -> None:
    """Memory was short. Told before anything is published: whoever makes the step again needs its micro-batch."""
    configured, used = stages.config["training"]["micro_batch"], report.micro_batch
    if used is not None and used != configured:
        stages.tell("micro_batch_halved", cycle, micro_batch=used, configured=configured)


def version_of(cycle: Cycle) -> str:
    """Name of the checkpoint that a cycle publishes; cycle numbers are never reused."""
    return f"cycle-{cycle.number:06d}"


def evaluate(stages: Stages, cycle: Cycle, candidate: Checkpoint) -> Outcome:
    """Probe a published candidate, which the trainer holds, as far as that is still missing, and decide."""
    measure_candidate(stages, cycle, candidate)
    return decide(stages, _committed(stages, stages.ledger.probed(cycle)), candidate)


def decide(stages: Stages, cycle: Cycle, candidate: Checkpoint) -> Outcome:
    """The verdict from stored rows alone, and what follows from it; a suspicion is confirmed or cleared first.

    Raises:
        DreamdError: the judge is not content with the fresh samples that it asked for.
    """
    ledger = stages.ledger
    verdict = _judge(stages, cycle, candidate)
    if isinstance(verdict, Suspicion):
        confirm(stages, cycle, candidate, verdict)
        verdict = _judge(stages, cycle, candidate)
    if isinstance(verdict, Suspicion):
        raise DreamdError(f"cycle {cycle.number}: suspected again after a fresh sample: {verdict.reason}")
    outcome = roll_back(stages, cycle, verdict) if verdict.regressed else ledger.promote(cycle, verdict)
    retain(stages)
    return outcome


def _judge(stages: Stages, cycle: Cycle, candidate: Checkpoint) -> Verdict | Suspicion:
    return stages.judge.judge(stages.ledger.history(cycle), evidence_of(stages, cycle, candidate))


def report_finished(stages: Stages, number: int, outcome: Outcome) -> None:
    """Record the seconds and log the canonical `cycle_finished` line."""
    seconds = {name: round(value, 3) for name, value in stages.seconds.items()}
    cycle = stages.ledger.cycle(number)
    stages.ledger.record_seconds(cycle, seconds)
    total = sum(stages.seconds.values())
    share = sum(stages.seconds.get(name, 0.0) for name in ("probe", "confirm")) / total if total else 0.0
    fields = {"cycle": number, "outcome": str(outcome), "reason": cycle.reason, "head": stages.ledger.head().version}
    stages.ledger.event("cycle_finished", cycle=cycle, outcome=str(outcome), reason=cycle.reason)
    stages.observer.log("cycle_finished", **fields, seconds=seconds, probe_share=round(share, 3))


def _close_unpublished(stages: Stages, number: int, outcome: Outcome, reason: str) -> None:
    """End a cycle that broke off, unless its candidate is published: that one is finished at the next start."""
    cycle = stages.ledger.cycle(number)
    if cycle.outcome is None and cycle.state not in (CycleState.PUBLISHED, CycleState.PROBED):
        if outcome is Outcome.LOST and not cycle.state.spends:
            outcome = Outcome.FAILED
        stages.ledger.close(cycle, outcome, reason)
        report_finished(stages, number, outcome)


def _lost_before(stages: Stages) -> bool:
    """Whether the cycle before the last one was lost, too."""
    return [record.outcome for record in stages.ledger.records(2)] == [Outcome.LOST, Outcome.LOST]


def _committed(stages: Stages, cycle: Cycle) -> Cycle:
    stages.observer.committed(cycle)
    return cycle


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, DreamdError) else f"{type(error).__name__}: {error}"
