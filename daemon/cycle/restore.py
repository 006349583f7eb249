"""Go back: to an earlier checkpoint, with weights, optimizer and engine restored and each of them verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from daemon.cycle.stages import Stages
from daemon.domain.errors import RestoreError
from daemon.domain.lineage import baked
from daemon.domain.probing import ProbeRequest, ProbeResult
from daemon.domain.records import Checkpoint, Cycle, PolicyDigests
from daemon.domain.states import CheckpointState, Outcome, ProbeReason, RollbackTarget
from daemon.domain.verdicts import Rollback, Verdict


def roll_back(stages: Stages, cycle: Cycle, verdict: Verdict) -> Outcome:
    """Carry out a verdict: one transaction moves the head, then the policy and the engine follow and prove it.

    A kill in between leaves a head that the next start loads, and a rollback row that it verifies.

    Raises:
        RestoreError: what is live now is not what the target's records say.
    """
    assert verdict.to_version is not None, "a verdict to roll back names its target"
    target = stages.ledger.checkpoint(verdict.to_version)
    rollback = stages.ledger.roll_back(cycle, verdict, target)
    stages.observer.log("rolled_back", level="warning", to=target.version, reason=verdict.reason)
    verify(stages, rollback, cycle)
    return Outcome.ROLLED_BACK


def find_anchor(stages: Stages, anchor: RollbackTarget) -> Checkpoint:
    """The checkpoint that an objective's reference names: A1, or the base."""
    lineage = stages.ledger.lineage()
    if anchor is RollbackTarget.A1:
        found = baked(lineage, stages.baked_after)
        # Its files can be gone when `baked_after` was lowered; the base's never are.
        return lineage[-1] if found.state is CheckpointState.PRUNED else found
    return lineage[-1]


def verify(stages: Stages, rollback: Rollback, cycle: Cycle | None) -> Mapping[str, Any]:
    """Restore a rollback's target, prove it, and record the proof in the rollback's row."""
    evidence = restore(stages, stages.ledger.checkpoint(rollback.to_version), cycle)
    stages.ledger.rollback_verified(rollback, evidence)
    stages.observer.log("rollback_verified", level="warning", to=rollback.to_version)
    return evidence


def restore(stages: Stages, target: Checkpoint, cycle: Cycle | None) -> Mapping[str, Any]:
    """Make `target` live in trainer and engine.

    Returns:
        The proof: digests, the engine check, and how many held-out documents gave exactly their stored NLL.

    Raises:
        RestoreError: a digest or a stored measurement differs by as much as one bit.
        StaleEngineError: the engine does not hold the restored weights.
    """
    with stages.stage(cycle, "restore"):
        stages.policy.restore(target)
    expected = PolicyDigests(target.weights_digest, target.optimizer_digest)
    live = stages.policy.digests()
    if live != expected:
        raise RestoreError(f"{target.version}: the restored policy's digests are {live}, recorded are {expected}")
    check = stages.sync_engine(target, cycle)
    stored = _nll(stages.ledger.probe_results(target.version))
    with stages.stage(cycle, "verify") as progress:
        (run,) = stages.probes.measure([ProbeRequest("nll", ProbeReason.ANCHOR)], progress)
    measured = _nll(run.results)
    for item, value in measured.items():
        if item in stored and stored[item] != value:
            raise RestoreError(
                f"{target.version}: held-out document {item} now has NLL {value!r}, its record says {stored[item]!r}"
            )
    return {
        "weights_digest": live.weights,
        "optimizer_digest": live.optimizer,
        "engine": asdict(check),
        "nll_items_equal": len(measured.keys() & stored.keys()),
    }


def _nll(results: tuple[ProbeResult, ...]) -> dict[str, float | None]:
    return {result.item: result.value for result in results if result.probe == "nll"}
