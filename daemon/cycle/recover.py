"""Repair at start: whatever the last process left becomes a finished cycle and a live, verified head.

planned, swept, paired   abandoned; its scenarios may come back
claimed, stepped         adopted when its checkpoint was published and matches; else lost, its examples spent
published                verified (else lost); the missing probes are run, then the verdict
probed                   verified (else lost); the verdict is recomputed from stored rows
"""

from __future__ import annotations

from daemon.cycle.measuring import make_live, measure_anchors, measure_candidate
from daemon.cycle.restore import verify
from daemon.cycle.run import decide, evaluate, report_finished, version_of
from daemon.cycle.stages import Stages
from daemon.domain.errors import CheckpointError, DreamdError
from daemon.domain.records import Checkpoint, Cycle
from daemon.domain.states import CheckpointState, CycleState, Outcome


def recover(stages: Stages) -> None:
    """Finish every unfinished cycle, tidy the checkpoint directory, and make the head live and proven.

    An anchor that has to be measured and does not verify comes back from the mirror; head and base did before.

    Raises:
        CheckpointError: the head does not verify, or an anchor, and was not brought back.
        DreamdError: a stage of a resumed cycle failed.
    """
    measure_anchors(stages)  # first: an unfinished candidate is compared with them
    for cycle in stages.ledger.unfinished():
        stages.seconds.clear()
        outcome = _finish(stages, cycle)
        stages.ledger.event("cycle_recovered", level="warning", cycle=cycle, state=cycle.state, outcome=outcome)
        stages.observer.log("cycle_recovered", level="warning", cycle=cycle.number, state=cycle.state, outcome=outcome)
        report_finished(stages, cycle.number, outcome)
    _tidy(stages)
    _verify_rollbacks(stages)
    measure_anchors(stages)  # again: the head may be another one now
    head = stages.ledger.head()
    make_live(stages, head)
    stages.sync_engine(head, None)


def _finish(stages: Stages, cycle: Cycle) -> Outcome:
    if not cycle.state.spends:
        return stages.ledger.close(cycle, Outcome.ABANDONED, f"the process ended in state {cycle.state}")
    if cycle.state in (CycleState.CLAIMED, CycleState.STEPPED):
        adopted = _adopt(stages, cycle)
        if adopted is None:
            reason = f"the process ended in state {cycle.state} with nothing published"
            return stages.ledger.close(cycle, Outcome.LOST, reason)
        cycle = adopted
    assert cycle.candidate_version is not None, "a published cycle names its candidate"
    candidate = stages.ledger.checkpoint(cycle.candidate_version)
    try:
        make_live(stages, candidate)  # verifies every hash: what does not load must never become the head
    except CheckpointError as error:
        return stages.ledger.close(cycle, Outcome.LOST, f"the published candidate does not verify: {error}")
    if cycle.state is CycleState.PROBED:
        measure_candidate(stages, cycle, candidate)  # nothing, unless the program or the suite is another one since
        return decide(stages, cycle, candidate)
    return evaluate(stages, cycle, candidate)


def _verify_rollbacks(stages: Stages) -> None:
    """Finish rollbacks that a kill cut off; one whose target is no longer the head has nothing left to prove."""
    for rollback in stages.ledger.pending_rollbacks():
        head = stages.ledger.head().version
        if rollback.to_version == head:
            verify(stages, rollback, None)
        else:
            stages.ledger.rollback_verified(rollback, {"superseded_by": head})
        if rollback.cycle_number is not None:
            report_finished(stages, rollback.cycle_number, Outcome.ROLLED_BACK)


def _adopt(stages: Stages, cycle: Cycle) -> Cycle | None:
    """Record a checkpoint that was published just before the process died, if it is this cycle's own."""
    version, ledger = version_of(cycle), stages.ledger
    if not stages.store.exists(version):
        return None
    try:
        found = stages.store.verify(version)
        step, parent_root_hash = stages.store.step_report(version), stages.store.parent_root_hash(version)
    except CheckpointError as error:
        ledger.event("adoption_refused", level="warning", cycle=cycle, reason=str(error))
        return None
    if stages.store.is_lossy(version):  # of another life of this run, before an older backup came back
        ledger.event("adoption_refused", level="warning", cycle=cycle, reason="only its image is there")
        return None
    parent = ledger.checkpoint(cycle.parent_version)
    belongs = (found.cycle_number, found.batch_hash, parent_root_hash) == (
        cycle.number,
        cycle.batch_hash,
        parent.root_hash,
    )
    if not belongs or step is None:
        ledger.event("adoption_refused", level="warning", cycle=cycle, reason="its manifest is of another lineage")
        return None
    if cycle.state is CycleState.CLAIMED:
        cycle = ledger.record_step(cycle, step)
    return ledger.record_published(cycle, found)


def _tidy(stages: Stages) -> None:
    """Remove temporary directories, finish interrupted pruning, set unknown directories aside."""
    checkpoints = stages.ledger.checkpoints()
    for checkpoint in checkpoints:
        try:
            _finish_removal(stages, checkpoint)
        except (DreamdError, OSError) as error:  # one that rotted is for the scrub to mend; no reason to stand still
            stages.tell("not_removed", None, version=checkpoint.version, reason=str(error))
    for name in stages.store.clean(checkpoint.version for checkpoint in checkpoints):
        stages.ledger.event("checkpoint_quarantined", level="warning", directory=name)
        stages.observer.log("checkpoint_quarantined", level="warning", directory=name)


def _finish_removal(stages: Stages, checkpoint: Checkpoint) -> None:
    """Delete what the database says is gone already."""
    if stages.store.exists(checkpoint.version):
        if checkpoint.state is CheckpointState.PRUNED:
            stages.store.prune(checkpoint.version)
        elif not checkpoint.exact:
            stages.store.make_lossy(checkpoint.version)
