"""`make bench-watchdog`: how often the shipped judge rolls back without a cause, and how soon with one.

The judge is the daemon's own, with its default settings and all its rules together. What it sees is simulated:
`watchdog_world` is the policy, `watchdog_lineage` what the daemon does around the judge, `watchdog_studies` what is
counted. The same seed gives the same tables. Markdown on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

from benchmarks.watchdog_report import report
from benchmarks.watchdog_studies import (
    FORKS_PER_RUN,
    NULL_LENGTH,
    NULLS,
    PAIRED_CHANGES,
    PASS_CHANGES,
    TEN,
    DelayTally,
    NullTally,
    simulate_changes,
    simulate_null,
)
from benchmarks.watchdog_world import Setting
from daemon.config.watching import WatchdogConfig

CYCLES, TIMES = 12_000, 200
"""Cycles of each kind of run without a change; how often each change is made."""
PROMPTS = (24, 40)
"""`probes.behaviour_items`: as shipped, and what the goal for pass rates is stated for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to simulate."""

    cycles: int
    times: int
    seed: int
    config: WatchdogConfig
    processes: int
    settings: tuple[Setting, ...] = NULLS
    prompts: tuple[int, ...] = PROMPTS
    run_length: int = NULL_LENGTH


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print."""
    plan = _plan(arguments)
    started = time.perf_counter()
    nulls, delays = simulate(plan)
    changed = plan.config.model_dump(exclude_defaults=True)
    sys.stdout.write(f"Seed {plan.seed}; settings that are not as shipped: {changed or 'none'}.\n\n")
    sys.stdout.write(report(nulls, delays) + f" {time.perf_counter() - started:.0f} seconds in all.\n")
    return 0


def simulate(plan: Plan) -> tuple[list[NullTally], list[DelayTally]]:
    """Every study of the plan, in its order; the same figures with any number of processes."""
    # "spawn": a forked child would share the threads' state of whatever the parent has loaded.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(plan.processes, mp_context=context) as pool:
        null_runs = [(setting.name, _null_runs(pool, plan, setting)) for setting in plan.settings]
        change_runs = [_change_runs(pool, plan, prompts) for prompts in plan.prompts]
        nulls = [_null_sum(name, runs) for name, runs in null_runs]
        delays = [tally for runs in change_runs for tally in _delay_sums(runs)]
    return nulls, delays


def _null_runs(pool: ProcessPoolExecutor, plan: Plan, setting: Setting) -> list[Future[NullTally]]:
    counted = max(1, plan.run_length - plan.config.warmup_cycles)
    return [
        pool.submit(simulate_null, setting, plan.config, plan.seed + number, plan.run_length)
        for number in range(max(1, round(plan.cycles / counted)))
    ]


def _change_runs(pool: ProcessPoolExecutor, plan: Plan, prompts: int) -> list[Future[list[DelayTally]]]:
    setting = replace(NULLS[0], rates=TEN, behaviour_items=prompts)
    changes = PASS_CHANGES if prompts != plan.prompts[0] else (*PASS_CHANGES, *PAIRED_CHANGES)
    forks = min(plan.times, FORKS_PER_RUN)
    return [
        pool.submit(simulate_changes, setting, changes, plan.config, plan.seed + number, forks)
        for number in range(max(1, round(plan.times / forks)))
    ]


def _null_sum(name: str, runs: Sequence[Future[NullTally]]) -> NullTally:
    total = NullTally(name)
    for run in runs:
        total.add(run.result())
    sys.stderr.write(f"  {name}: {total.cycles} cycles, {total.rollbacks.total()} rollbacks\n")
    return total


def _delay_sums(runs: Sequence[Future[list[DelayTally]]]) -> list[DelayTally]:
    totals = runs[0].result()
    for run in runs[1:]:
        for total, more in zip(totals, run.result(), strict=True):
            total.add(more)
    sys.stderr.write(f"  {len(totals)} changes with {totals[0].behaviour_items} prompts a cycle\n")
    return totals


def _plan(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watchdog", description=__doc__)
    parser.add_argument("--cycles", type=int, default=CYCLES, help="of each kind of run without a change (%(default)s)")
    parser.add_argument("--times", type=int, default=TIMES, help="that each change is made (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: does it run at all?")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of [watchdog], instead of the default"
    )
    given = parser.parse_args(arguments)
    share = 10 if given.quick else 1
    config = WatchdogConfig.model_validate(dict(pair.split("=", 1) for pair in given.set))
    return Plan(max(1, given.cycles // share), max(1, given.times // share), given.seed, config, given.processes)


if __name__ == "__main__":
    sys.exit(main())
