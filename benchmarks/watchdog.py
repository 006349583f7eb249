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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.watchdog_report import report
from benchmarks.watchdog_studies import (
    FORKS_PER_RUN,
    NULL_LENGTH,
    NULLS,
    PAIRED_CHANGES,
    PASS_CHANGES,
    DelayTally,
    NullTally,
    simulate_changes,
    simulate_null,
)
from benchmarks.watchdog_world import SHIPPED, Setting
from daemon.config.watching import WatchdogConfig

CYCLES, TIMES = 12_000, 200
"""Cycles of each kind of run without a change; how often each change is made."""
PROMPTS = (SHIPPED.behaviour_items, 40)
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
    jobs = [*_null_jobs(plan), *_change_jobs(plan)]
    nulls: dict[str, NullTally] = {}
    delays: dict[tuple[str, int], DelayTally] = {}
    for done, tallies in enumerate(_worked(jobs, plan.processes), start=1):
        for tally in tallies:
            if isinstance(tally, NullTally):
                nulls.setdefault(tally.setting, NullTally(tally.setting, tally.what_if)).add(tally)
            else:
                key = (tally.change, tally.behaviour_items)
                delays.setdefault(key, DelayTally(*key)).add(tally)
        if done % 20 == 0:
            sys.stderr.write(f"  {done} of {len(jobs)} runs\n")
    return list(nulls.values()), list(delays.values())


Tallies = Sequence[NullTally | DelayTally]
Job = Callable[[], Tallies]


def _worked(jobs: Sequence[Job], processes: int) -> Iterator[Tallies]:
    """The jobs' results, in their order."""
    if processes == 1:
        yield from (job() for job in jobs)
        return
    # "spawn": a forked child would share the threads' state of whatever the parent has loaded.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from (future.result() for future in [pool.submit(job) for job in jobs])


def _null_jobs(plan: Plan) -> Iterator[Job]:
    counted = max(1, plan.run_length - plan.config.warmup_cycles)
    for setting in plan.settings:
        for number in range(max(1, round(plan.cycles / counted))):
            yield partial(simulate_null, setting, plan.config, plan.seed + number, plan.run_length)


def _change_jobs(plan: Plan) -> Iterator[Job]:
    forks = min(plan.times, FORKS_PER_RUN)
    for prompts in plan.prompts:
        setting = replace(NULLS[0], behaviour_items=prompts)
        changes = (*PASS_CHANGES, *PAIRED_CHANGES) if prompts == plan.prompts[0] else PASS_CHANGES
        for number in range(max(1, round(plan.times / forks))):
            yield partial(simulate_changes, setting, changes, plan.config, plan.seed + number, forks)


def _plan(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watchdog", description=__doc__)
    parser.add_argument("--cycles", type=int, default=CYCLES, help="of each kind of run without a change (%(default)s)")
    parser.add_argument("--times", type=int, default=TIMES, help="that each change is made (%(default)s)")
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help=f"a cycle and side {PROMPTS}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: does it run at all?")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of [watchdog], instead of the default"
    )
    given = parser.parse_args(arguments)
    share = 10 if given.quick else 1
    config = WatchdogConfig.model_validate(dict(pair.split("=", 1) for pair in given.set))
    cycles, times = max(1, given.cycles // share), max(1, given.times // share)
    return Plan(cycles, times, given.seed, config, given.processes, prompts=tuple(given.prompts))


if __name__ == "__main__":
    sys.exit(main())
