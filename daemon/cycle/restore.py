"""Go back: to an earlier checkpoint, with weights, optimizer and engine restored and each of them verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from daemon.cycle.stages import Stages
from daemon.domain import failpoints
from daemon.domain.errors import CheckpointError, RestoreError
from daemon.domain.lineage import baked
from daemon.domain.probing import ProbeRequest, ProbeResult
from daemon.domain.records import Checkpoint, Cycle, PolicyDigests
from daemon.domain.states import Outcome, ProbeReason, RollbackTarget
from daemon.domain.verdicts import Rollback, Verdict

MAX_ROUNDING = 1e-3
"""Largest difference in a document's NLL, nats per token, that another machine or library version may make."""

_Values = Mapping[str, float | None]


def roll_back(stages: Stages, cycle: Cycle, verdict: Verdict) -> Outcome:
    """Carry out a verdict: one transaction moves the head, then the policy and the engine follow and prove it.

    A kill in between leaves a head that the next start loads, and a rollback row that it verifies.

    Raises:
        RestoreError: what is live now is not what the target's records say.
    """
    target, verdict = _sound_target(stages, cycle, verdict)
    rollback = stages.ledger.roll_back(cycle, verdict, target)
    stages.observer.log("rolled_back", level="warning", to=target.version, reason=verdict.reason)
    verify(stages, rollback, cycle)
    return Outcome.ROLLED_BACK


def _sound_target(stages: Stages, cycle: Cycle, verdict: Verdict) -> tuple[Checkpoint, Verdict]:
    """The verdict's target if it would load, else the next older anchor's: the head must load at every instant.

    Raises:
        CheckpointError: not even the base verifies; nothing has moved.
    """
    assert verdict.to_version is not None, "a verdict to roll back names its target"
    lineage = [checkpoint.version for checkpoint in stages.ledger.lineage()]
    wanted = lineage.index(verdict.to_version)
    older = [a.version for a in stages.ledger.history(cycle).anchors if lineage.index(a.version) > wanted]
    damage: list[str] = []
    for version in (verdict.to_version, *older):
        target = stages.ledger.checkpoint(version)
        try:
            stages.store.open(target)
        except CheckpointError as error:
            damage.append(str(error))
            stages.tell("rollback_target_damaged", cycle, level="error", version=version, reason=str(error))
            continue
        if damage:
            reason = f"{verdict.reason}; instead to {version}, because {verdict.to_version} does not verify"
            verdict = replace(verdict, to_version=version, reason=reason)
        return target, verdict
    raise CheckpointError("; ".join(damage))


def find_anchor(stages: Stages, anchor: RollbackTarget) -> Checkpoint:
    """The checkpoint that an objective's reference names: A1, or the base."""
    lineage = stages.ledger.lineage()
    if anchor is RollbackTarget.A1:
        return baked(lineage, stages.baked_after)
    return lineage[-1]


def verify(stages: Stages, rollback: Rollback, cycle: Cycle | None) -> Mapping[str, Any]:
    """Restore a rollback's target, prove it, and record the proof in the rollback's row."""
    evidence = restore(stages, stages.ledger.checkpoint(rollback.to_version), cycle)
    stages.ledger.rollback_verified(rollback, evidence)
    stages.observer.log("rollback_verified", level="warning", to=rollback.to_version)
    return evidence


def restore(stages: Stages, target: Checkpoint, cycle: Cycle | None) -> Mapping[str, Any]:
    """Make `target` live in trainer and engine.

    Of a lossy target the image is restored, which the store has verified; its optimizer starts afresh, and its NLL may
    differ from the record by more than rounding.

    Returns:
        The proof: digests, the engine check, and how many held-out documents gave exactly their stored NLL.

    Raises:
        RestoreError: a digest differs by as much as one bit, or a stored measurement by more than rounding.
        StaleEngineError: the engine does not hold the restored weights.
    """
    failpoints.hit("cycle.restore")
    with stages.stage(cycle, "restore"):
        stages.policy.restore(target)
    expected = PolicyDigests(target.weights_digest, target.optimizer_digest)
    live = stages.policy.digests()
    if target.exact and live != expected:
        raise RestoreError(f"{target.version}: the restored policy's digests are {live}, recorded are {expected}")
    check = stages.sync_engine(target, cycle)
    stored = _nll(stages.ledger.probe_results(target.version))
    with stages.stage(cycle, "verify") as progress:
        (run,) = stages.probes.measure([ProbeRequest("nll", ProbeReason.ANCHOR)], progress)
    measured = _nll(run.results)
    difference = _compare(stages, target, cycle, stored, measured)
    return {
        "lossy": not target.exact,
        "weights_digest": live.weights,
        "optimizer_digest": live.optimizer,
        "engine": asdict(check),
        "nll_items_equal": sum(measured[item] == stored[item] for item in measured.keys() & stored.keys()),
        "nll_max_difference": difference,
    }


def _compare(stages: Stages, target: Checkpoint, cycle: Cycle | None, stored: _Values, measured: _Values) -> float:
    """The largest difference between a restored policy's NLL and its record; 0.0 but after a change of numerics.

    The weights' digests are equal here. What then still differs is the machine or a library, which rounds otherwise:
    that is said, and no reason to stand still.

    Raises:
        RestoreError: the difference is larger than rounding can be.
    """
    differing = [item for item in sorted(measured.keys() & stored.keys()) if measured[item] != stored[item]]
    largest = 0.0
    for item in differing:
        now, then = measured[item], stored[item]
        if now is None or then is None or (target.exact and abs(now - then) > MAX_ROUNDING):
            raise RestoreError(
                f"{target.version}: held-out document {item} now has NLL {now!r}, its record says {then!r}"
            )
        largest = max(largest, abs(now - then))
    if differing:
        stages.tell("numerics_changed", cycle, version=target.version, items=len(differing), max_difference=largest)
    return largest


def _nll(results: tuple[ProbeResult, ...]) -> dict[str, float | None]:
    return {result.item: result.value for result in results if result.probe == "nll"}
