"""One simulated run: candidates, the real judge, confirmations, promotions and rollbacks, as the daemon does them.

What storage would hand to the judge is kept here in memory: ancestors, pooled references, pruned files, detectors.
Breaker and governor are left out, so a run goes on after a rollback as before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.watchdog_world import (
    BEHAVIOUR,
    CAPABILITIES,
    NO_CHANGE,
    PASS_PROBES,
    POOL,
    Change,
    Floats,
    World,
    mean_of,
)
from daemon.config.sections import CheckpointsConfig
from daemon.config.watching import WatchdogConfig
from daemon.domain import lineage as ancestry
from daemon.domain.errors import DreamdError
from daemon.domain.probing import ProbeResult
from daemon.domain.records import Checkpoint, StepReport
from daemon.domain.states import CheckpointState
from daemon.domain.verdicts import Anchor, Evidence, History, PassCount, Suspicion, Verdict
from daemon.ports import Judge

KEEP_EXACT = CheckpointsConfig().keep_exact
"""Newest checkpoints whose exact state stays, as shipped."""
NUM_EARLIER = 20
"""Earlier steps whose figures the history carries."""

_STEP = StepReport(
    objective="orpo",
    optimizer="apollo",
    lr=1e-5,
    loss=2.4,
    nll=2.3,
    odds_loss=1.5,
    chosen_logprob=-2.3,
    rejected_logprob=-0.8,
    log_odds=-2.0,
    margin=-1.5,
    grad_norm=3.0,
    update_rms=2e-6,
    num_examples=25,
    num_pairs=16,
    num_tokens=1200,
)


@dataclass(frozen=True, slots=True)
class Node:
    """A checkpoint of the run, and all that is known of it."""

    checkpoint: Checkpoint
    """As it was published."""
    state: Floats
    changed_steps: int
    results: tuple[ProbeResult, ...]
    chosen_logp: float
    step: StepReport | None
    detectors: Mapping[str, Any]
    counts: Mapping[str, PassCount]


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle came to."""

    number: int
    depth: int
    """Promoted steps before it."""
    verdict: Verdict
    suspected: tuple[str, ...]
    """Probes that were confirmed or cleared on fresh prompts."""
    candidate: Node
    parent: Node


class Run:
    """A lineage that grows by one candidate a cycle."""

    def __init__(self, world: World, judge: Judge, config: WatchdogConfig, source: np.random.Generator) -> None:
        self._world, self._judge, self._config, self._source = world, judge, config, source
        self._change = NO_CHANGE
        self._number = 0
        # As if each had been asked last in another cycle before the first: so they take turns.
        self._asked_in = {probe: -place for place, probe in enumerate(CAPABILITIES)}
        self._pooled: dict[str, Mapping[str, PassCount]] = {}
        self._lineage = [self._base()]
        self._checkpoints = [self._lineage[0].checkpoint]

    def fork(self, source: np.random.Generator, change: Change) -> Run:
        """The same run until now, in which something goes wrong from the next step on."""
        other = copy.copy(self)
        other._source, other._change = source, change
        other._lineage, other._pooled = list(self._lineage), dict(self._pooled)
        other._checkpoints, other._asked_in = list(self._checkpoints), dict(self._asked_in)
        return other

    @property
    def depth(self) -> int:
        return len(self._lineage) - 1

    def cycle(self) -> Cycle:
        """Step, measure, judge, and promote or roll back.

        Raises:
            DreamdError: the judge still suspects after its confirmation, or names no checkpoint to go to.
        """
        self._number += 1
        parent, depth = self._lineage[-1], self.depth
        history = self._history()
        candidate = self._candidate(parent, eager=self._judge.suspects(history))
        verdict, suspected = self._verdict(history, candidate)
        if verdict.regressed:
            self._roll_back(verdict)
        else:
            self._lineage.append(replace(candidate, detectors=verdict.evidence.get("detectors", {})))
            self._checkpoints.append(candidate.checkpoint)
            self._prune()
        return Cycle(self._number, depth, verdict, suspected, candidate, parent)

    def base_counts(self) -> Mapping[str, PassCount]:
        return self._lineage[0].counts

    def _base(self) -> Node:
        world, source = self._world, self._source
        state = world.start(source)
        paired = world.paired(state, 0, NO_CHANGE, 0)
        measured = {probe: world.answers(probe, 0, POOL, source, NO_CHANGE) for probe in PASS_PROBES}
        results = (*paired, *(answer for answers in measured.values() for answer in answers))
        checkpoint = _checkpoint("base", None)
        return Node(checkpoint, state, 0, results, mean_of(paired, "chosen_logp"), None, {}, _counted(measured))

    def _candidate(self, parent: Node, *, eager: bool) -> Node:
        world, source, setting = self._world, self._source, self._world.setting
        state = world.step(parent.state, source)
        changed = parent.changed_steps + (self._change is not NO_CHANGE)
        paired = world.paired(state, self.depth + 1, self._change, changed)
        turns = dict.fromkeys(BEHAVIOUR, (self._number - 1, setting.behaviour_items)) | self._capability_turns(eager)
        measured = {
            probe: world.answers(probe, turn * count, count, source, self._change)
            for probe, (turn, count) in turns.items()
        }
        results = (*paired, *(answer for answers in measured.values() for answer in answers))
        checkpoint = _checkpoint(f"cycle-{self._number:06}", self._number)
        chosen = mean_of(paired, "chosen_logp")
        return Node(checkpoint, state, changed, results, chosen, self._step(), {}, _counted(measured))

    def _capability_turns(self, eager: bool) -> dict[str, tuple[int, int]]:
        """Turn and number of tasks of each capability that is due, as the daemon's schedule has it within its budget.

        Args:
            eager: all of them are due, whenever they were asked last.
        """
        setting, number = self._world.setting, self._number
        every = 1 if eager else setting.capability_every
        due = [probe for probe in CAPABILITIES if number - self._asked_in[probe] >= every]
        self._asked_in.update(dict.fromkeys(due, number))
        return dict.fromkeys(due, (number // every, setting.capability_items))

    def _step(self) -> StepReport:
        """Figures of a batch like any other; updates get smaller during the first steps."""
        source, usual = self._source, 0.17 * (1 + np.exp(-self.depth / 5))
        chosen, rejected = float(source.normal(-2.3, 0.35)), float(source.normal(-0.8, 0.12))
        return replace(
            _STEP,
            chosen_logprob=chosen,
            rejected_logprob=rejected,
            margin=chosen - rejected,
            update_rms=float(_STEP.lr * usual * source.lognormal(0.0, 0.15)),
        )

    def _verdict(self, history: History, candidate: Node) -> tuple[Verdict, tuple[str, ...]]:
        assert candidate.step is not None
        evidence = Evidence(candidate.step, candidate.results)
        # `gate` is what `judge` begins with, so it is not asked as well.
        found = self._judge.judge(history, evidence)
        if isinstance(found, Verdict):
            return found, ()
        fresh = self._confirmation(found)
        again = self._judge.judge(history, replace(evidence, results=(*evidence.results, *fresh)))
        if isinstance(again, Suspicion):
            raise DreamdError(f"cycle {self._number}: still suspicious after its confirmation: {again.reason}")
        return again, found.probes

    def _confirmation(self, suspicion: Suspicion) -> list[ProbeResult]:
        first, count = self._number * suspicion.num_items, suspicion.num_items
        return [
            answer
            for probe in suspicion.probes
            for answer in self._world.answers(probe, first, count, self._source, self._change, fresh=True)
        ]

    def _history(self) -> History:
        every = self._config.baked_after
        newest_first = self._checkpoints[::-1]
        anchors = ancestry.anchors(newest_first, every)
        baked = ancestry.baked(newest_first, every)
        a1 = self.depth - next(back for back, checkpoint in enumerate(newest_first) if checkpoint is baked)
        earlier = [node.step for node in self._lineage[-NUM_EARLIER:] if node.step is not None]
        parent, base = self._lineage[-1], self._lineage[0]
        return History(
            parent=parent.results,
            baked=self._lineage[a1].results,
            base=base.results,
            update_rms_over_lr=tuple(step.update_rms_over_lr for step in earlier),
            chosen_logp=tuple(node.chosen_logp for node in self._lineage),
            batch_logprobs=tuple((step.chosen_logprob, step.rejected_logprob) for step in earlier),
            batch_margins=tuple(step.margin for step in earlier if step.margin is not None),
            parent_anchor=Anchor(parent.checkpoint.version, parent.checkpoint.cycle_number or 0, self.depth),
            anchors=anchors,
            references=self._references(a1),
            detectors=parent.detectors,
        )

    def _references(self, a1: int) -> Mapping[str, Mapping[str, PassCount]]:
        """Of each pass/fail probe: the base's failures, and those of A1 and as many before it as are needed."""
        version = self._lineage[a1].checkpoint.version
        if version not in self._pooled:
            ancestors = self._lineage[a1:0:-1]
            self._pooled[version] = {
                probe: pooled
                for probe in PASS_PROBES
                if (pooled := _pool(ancestors, probe, self._config.reference_items)) is not None
            }
        baked, base = self._pooled[version], self._lineage[0].counts
        return {
            probe: {"base": base[probe], "baked": baked[probe]} if probe in baked else {"base": base[probe]}
            for probe in PASS_PROBES
        }

    def _roll_back(self, verdict: Verdict) -> None:
        versions = [node.checkpoint.version for node in self._lineage]
        if verdict.to_version not in versions:
            raise DreamdError(f"cycle {self._number}: rolling back to {verdict.to_version}, not an ancestor")
        kept = versions.index(verdict.to_version) + 1
        del self._lineage[kept:], self._checkpoints[kept:]
        self._lineage[-1] = replace(self._lineage[-1], detectors={})

    def _prune(self) -> None:
        """Mark whose files are deleted; only the newest 40 can still have some, apart from those that stay for good."""
        keep = ancestry.kept(self._checkpoints[::-1], self._config.baked_after, KEEP_EXACT)
        for place in range(max(0, len(self._checkpoints) - 40), len(self._checkpoints)):
            checkpoint = self._checkpoints[place]
            if checkpoint.version not in keep and checkpoint.state is not CheckpointState.PRUNED:
                self._checkpoints[place] = replace(checkpoint, state=CheckpointState.PRUNED)


def _counted(measured: Mapping[str, Sequence[ProbeResult]]) -> Mapping[str, PassCount]:
    return {
        probe: PassCount(sum(answer.passed is False for answer in answers), len(answers))
        for probe, answers in measured.items()
    }


def _pool(ancestors: Sequence[Node], probe: str, wanted: int) -> PassCount | None:
    failures = num_items = 0
    for node in ancestors:
        found = node.counts.get(probe, PassCount(0, 0))
        failures, num_items = failures + found.failures, num_items + found.num_items
        if num_items >= wanted:
            return PassCount(failures, num_items)
    return None


def _checkpoint(version: str, number: int | None) -> Checkpoint:
    state = CheckpointState.BASE if number is None else CheckpointState.PROMOTED
    return Checkpoint(version, number, None, None, "", "", "", 0, state)
