"""Measure candidates, anchors and fresh samples: only what is still missing, so that a restart repeats nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from daemon.cycle.mending import mend
from daemon.cycle.stages import Stages
from daemon.domain.errors import CheckpointError
from daemon.domain.lineage import baked
from daemon.domain.probing import CONFIRMATION_SUFFIX, FAILED, ProbeRequest, ProbeRun
from daemon.domain.records import Checkpoint, Cycle
from daemon.domain.states import ProbeReason
from daemon.domain.verdicts import Evidence, History, Suspicion

_FEW = 1
"""At least so many items of each pool: one request of its usual size."""
_AT_ONCE = 12
"""Requests of an anchor that are committed together; all of the base's first ones, so that they share their batches."""


def measure_beside(stages: Stages, cycle: Cycle) -> tuple[ProbeRun, ...]:
    """The probes of a candidate that need the trainer alone, and that its publication need not be waited for."""
    _, plan = _plan(stages, cycle)
    with stages.stage(cycle, "probe") as progress:
        return stages.probes.measure(_of_trainer(stages, plan), progress)


def measure_candidate(stages: Stages, cycle: Cycle, candidate: Checkpoint) -> None:
    """Every probe that the plan has for a candidate which the trainer holds.

    A candidate that the trainer's probes refuse already is never put into the engine: broken weights can poison it.
    """
    history, plan = _plan(stages, cycle)
    first = _of_trainer(stages, plan)
    _measure(stages, cycle, candidate, first, "probe")
    # What needs the engine is recorded all at once: with the core there, everything that was due then is there.
    core = [request for request in plan if request.reason is ProbeReason.CORE]
    if _missing(stages, candidate, core) and stages.judge.gate(history, evidence_of(stages, cycle, candidate)) is None:
        stages.sync_engine(candidate, cycle)
        _measure(stages, cycle, candidate, [request for request in plan if request not in first], "probe")


def _plan(stages: Stages, cycle: Cycle) -> tuple[History, Sequence[ProbeRequest]]:
    ledger = stages.ledger
    history = ledger.history(cycle)
    eager = stages.judge.suspects(history)
    budget, adjustments = ledger.probe_budget(), ledger.adjustments(cycle)
    return history, stages.probes.plan(cycle.number, budget, adjustments, eager=eager)


def _of_trainer(stages: Stages, plan: Sequence[ProbeRequest]) -> list[ProbeRequest]:
    """Those that decide and need no engine."""
    core = [request for request in plan if request.reason is ProbeReason.CORE]
    return [request for request in core if not stages.probes.needs_engine(request.probe)]


def evidence_of(stages: Stages, cycle: Cycle, candidate: Checkpoint) -> Evidence:
    """What was measured of a candidate, by probes that there still are: a pack removed since could confirm nothing."""
    known = {request.probe for request in stages.probes.anchor_plan(_FEW)}
    results = stages.ledger.probe_results(candidate.version)
    return Evidence(
        stages.ledger.step_report(cycle),
        tuple(r for r in results if r.passed is None or r.probe.removesuffix(CONFIRMATION_SUFFIX) in known),
    )


def confirm(stages: Stages, cycle: Cycle, candidate: Checkpoint, suspicion: Suspicion) -> None:
    """Measure fresh prompts of the reserve on a candidate which the trainer holds; training waits for it."""
    stages.tell("suspected", cycle, probes=suspicion.probes, reason=suspicion.reason)
    if stages.engine.policy_version != candidate.version:  # after a restart
        stages.sync_engine(candidate, cycle)
    requests = [
        ProbeRequest(probe, ProbeReason.CONFIRMATION, cycle.number, suspicion.num_items) for probe in suspicion.probes
    ]
    _measure(stages, cycle, candidate, requests, "confirm")


def measure_anchors(stages: Stages) -> None:
    """Measure whatever the watchdog will compare with and has no results of yet.

    That is the base before the first cycle, its pass rates in full once warm-up ends, and every anchor after the
    held-out suite or its size changed.
    """
    lineage = stages.ledger.lineage()
    base, warm = lineage[-1], len(lineage) > stages.warmup_cycles
    for anchor in {c.version: c for c in (base, baked(lineage, stages.baked_after), lineage[0])}.values():
        num_items = (stages.reference_items if warm else _FEW) if anchor is base else None
        missing = _missing(stages, anchor, stages.probes.anchor_plan(num_items))
        if missing:
            try:
                make_live(stages, anchor)
            except CheckpointError as error:
                mend(stages, anchor, str(error))
                if stages.ledger.checkpoint(anchor.version) != anchor:
                    return measure_anchors(stages)  # it is none any more: an older one is
                make_live(stages, anchor)
            if any(stages.probes.needs_engine(request.probe) for request in missing):
                stages.sync_engine(anchor, None)
            for part in _batched(missing):  # committed part by part: a restart goes on where it was
                _measure(stages, None, anchor, part, "anchor")


def evaluate_head(stages: Stages) -> None:
    """Measure the head on prompts it was not asked yet, while nothing is trained."""
    head = stages.ledger.head()
    make_live(stages, head)
    stages.sync_engine(head, None)
    turn = stages.ledger.next_cycle_number() - 1
    plan = [replace(r, reason=ProbeReason.EVALUATION, turn=turn) for r in stages.probes.anchor_plan(_FEW)]
    _measure(stages, None, head, plan, "anchor")


def make_live(stages: Stages, checkpoint: Checkpoint) -> None:
    """Have the trainer hold `checkpoint`, every hash verified."""
    if stages.policy.version != checkpoint.version:
        with stages.stage(None, "load"):
            stages.policy.restore(checkpoint)


def _measure(
    stages: Stages, cycle: Cycle | None, checkpoint: Checkpoint, requests: Sequence[ProbeRequest], stage: str
) -> None:
    missing = _missing(stages, checkpoint, requests)
    if missing:
        with stages.stage(cycle, stage) as progress:
            runs = stages.probes.measure(missing, progress)
        stages.ledger.record_probes(checkpoint.version, runs, cycle)
        for run in runs:
            if run.skipped is not None and run.skipped.startswith(FAILED):
                stages.tell("probe_failed", cycle, probe=run.probe, reason=run.skipped)


def _batched(requests: Sequence[ProbeRequest]) -> Iterator[Sequence[ProbeRequest]]:
    """Requests in their order, `_AT_ONCE` at a time."""
    return (requests[start : start + _AT_ONCE] for start in range(0, len(requests), _AT_ONCE))


def _missing(stages: Stages, checkpoint: Checkpoint, requests: Iterable[ProbeRequest]) -> list[ProbeRequest]:
    """Requests with an item that the checkpoint has no result of."""
    stored = {(result.probe, result.item) for result in stages.ledger.probe_results(checkpoint.version)}
    return [request for request in requests if not stages.probes.items(request) <= stored]
