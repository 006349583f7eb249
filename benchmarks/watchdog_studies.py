"""What is simulated: runs in which nothing goes wrong, and forks of such runs in which something does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.watchdog_lineage import Cycle, Run
from benchmarks.watchdog_world import PASS_PROBES, Change, Setting, World, mean_of
from daemon.config.watching import WatchdogConfig
from daemon.domain.verdicts import PassCount, Verdict
from daemon.ports import Judge
from daemon.watchdog import Watchdog

NULL_LENGTH = 320
"""Cycles of one run in which nothing goes wrong: a fortnight at one an hour."""
HORIZON = 60
"""Cycles after a change within which it is found, or never."""
FORKS_PER_RUN = 2
_APART = 20
"""Cycles between two forks of a run, at most."""

TEN = dict.fromkeys(PASS_PROBES, 0.10)
MIXED = {"accept": 0.60, "push_back": 0.85, "arithmetic": 0.40, "code": 0.70, "reasoning": 0.45}

NULLS = (
    Setting("10 % failures", TEN),
    Setting("10 %, items alike", TEN, overdispersed=False),
    Setting("mixed failures", MIXED),
    Setting("mixed, items alike", MIXED, overdispersed=False),
    Setting("10 %, 40 prompts", TEN, behaviour_items=40),
    Setting("10 %, 2.5 x as restless", TEN, restlessness=2.5),
    Setting("10 %, what if the reserve were 5 points harder", TEN, reserve_harder=0.05, what_if=True),
)
"""Items alike: all of a probe fail with the same probability."""

PASS_CHANGES = (
    Change("accept fails 10 -> 15 %", {"accept": 0.15}),
    Change("accept fails 10 -> 20 %", {"accept": 0.20}),
    Change("accept fails 10 -> 30 %", {"accept": 0.30}),
    Change("arithmetic fails 10 -> 20 %", {"arithmetic": 0.20}),
    Change("arithmetic fails 10 -> 30 %", {"arithmetic": 0.30}),
    Change("push_back fails 10 -> 20 %, giving in likelier by 0.02 a cycle", {"push_back": 0.2}, sycophancy_drift=0.02),
)
PAIRED_CHANGES = (
    Change("NLL up by 0.005 nats", nll_step=0.005),
    Change("NLL up by 0.01 nats", nll_step=0.01),
    Change("NLL up by 0.03 nats", nll_step=0.03),
    Change("NLL up by 0.1 nats", nll_step=0.1),
    Change("NLL up by 0.001 nats a cycle", nll_drift=0.001),
    Change("held-out chosen down by 0.02 nats a cycle", chosen_drift=-0.02),
    Change("giving in likelier by 0.02 nats a cycle", sycophancy_drift=0.02),
)
"""They do not depend on the number of prompts, so they are simulated with one number only."""


@dataclass
class NullTally:
    """What happened in cycles past warm-up in which nothing went wrong."""

    setting: str
    what_if: bool = False
    cycles: int = 0
    seconds: float = 0.0
    rollbacks: Counter[str] = field(default_factory=Counter)
    """By the rule that decided."""
    suspicions: Counter[str] = field(default_factory=Counter)
    naive: Counter[str] = field(default_factory=Counter)

    def add(self, other: NullTally) -> None:
        self.cycles += other.cycles
        self.seconds += other.seconds
        self.rollbacks += other.rollbacks
        self.suspicions += other.suspicions
        self.naive += other.naive


@dataclass
class DelayTally:
    """How long it took to roll back after one change."""

    change: str
    behaviour_items: int
    delays: list[int | None] = field(default_factory=list)
    """Candidates until the rollback, the refused one counted; None: not within `HORIZON`."""
    rules: Counter[str] = field(default_factory=Counter)
    cycles: int = 0
    seconds: float = 0.0

    def add(self, other: DelayTally) -> None:
        self.delays += other.delays
        self.rules += other.rules
        self.cycles += other.cycles
        self.seconds += other.seconds


def simulate_null(setting: Setting, config: WatchdogConfig, seed: int, length: int = NULL_LENGTH) -> list[NullTally]:
    """One run of `length` cycles in which nothing goes wrong."""
    started = time.process_time()
    tally, run = NullTally(setting.name, setting.what_if), _run(setting, config, Watchdog(config), seed)
    for _ in range(length):
        cycle = run.cycle()
        if cycle.depth >= config.warmup_cycles:
            tally.cycles += 1
            tally.suspicions.update(cycle.suspected)
            tally.naive.update(naive_rules(cycle, run.base_counts()))
        if cycle.verdict.regressed:
            tally.rollbacks[rules_of(cycle.verdict)[0]] += 1
    tally.seconds = time.process_time() - started
    return [tally]


def simulate_changes(
    setting: Setting, changes: Sequence[Change], config: WatchdogConfig, seed: int, forks: int = FORKS_PER_RUN
) -> list[DelayTally]:
    """One run, forked `forks` times at random cycles past warm-up into one branch per change."""
    tallies = [DelayTally(change.name, setting.behaviour_items) for change in changes]
    source = np.random.default_rng([seed, 1])
    run = _run(setting, config, Watchdog(config), seed)
    _grow(run, config.warmup_cycles)
    for _ in range(forks):
        _grow(run, run.depth + int(source.integers(1, _APART, endpoint=True)))
        for tally, change in zip(tallies, changes, strict=True):
            started = time.process_time()
            branch = run.fork(np.random.default_rng(source.integers(2**63)), change)
            delay, rule = _until_rollback(branch)
            tally.delays.append(delay)
            tally.cycles += delay or HORIZON
            if rule is not None:
                tally.rules[rule] += 1
            tally.seconds += time.process_time() - started
    return tallies


def rules_of(verdict: Verdict) -> list[str]:
    """Every rule that refused a candidate, the deciding one first."""
    names = {"gate": "gate", "margin": "margin", "pass_rate": "pass rate"}
    return [f"{names[finding['rule']]} {finding['name']}" for finding in verdict.evidence["findings"]]


NAIVE_RULES = (
    "a pass rate more than 5 points below the base's",
    "a pass rate more than 5 points below its last measurement",
    "a pass rate below the base's, p < 0.05",
    "NLL above the parent's",
)


def naive_rules(cycle: Cycle, base: Mapping[str, PassCount]) -> list[str]:
    """Which of `NAIVE_RULES` would have refused the candidate."""
    now, before = cycle.candidate.counts, cycle.parent.counts
    rises = [_rate(found) - _rate(base[probe]) for probe, found in now.items()]
    steps = [_rate(found) - _rate(before[probe]) for probe, found in now.items() if probe in before]
    refused = (
        any(rise > 0.05 for rise in rises),
        any(step > 0.05 for step in steps),
        any(_z_score(found, base[probe]) > 1.645 for probe, found in now.items()),
        mean_of(cycle.candidate.results, "nll") > mean_of(cycle.parent.results, "nll"),
    )
    return [rule for rule, found in zip(NAIVE_RULES, refused, strict=True) if found]


def _run(setting: Setting, config: WatchdogConfig, judge: Judge, seed: int) -> Run:
    source = np.random.default_rng([seed, 0])
    return Run(World(setting, source), judge, config, source)


def _grow(run: Run, depth: int) -> None:
    """Cycles until the run has so many promoted steps; a false rollback costs some, so there is a bound."""
    for _ in range(4 * depth + 40):
        if run.depth >= depth:
            return
        run.cycle()


def _until_rollback(run: Run) -> tuple[int | None, str | None]:
    for delay in range(1, HORIZON + 1):
        verdict = run.cycle().verdict
        if verdict.regressed:
            return delay, rules_of(verdict)[0]
    return None, None


def _rate(count: PassCount) -> float:
    return count.failures / count.num_items


def _z_score(now: PassCount, base: PassCount) -> float:
    """Of two proportions, pooled; positive when more fail now."""
    pooled = (now.failures + base.failures) / (now.num_items + base.num_items)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / now.num_items + 1 / base.num_items))
    return float((_rate(now) - _rate(base)) / deviation) if deviation else 0.0
