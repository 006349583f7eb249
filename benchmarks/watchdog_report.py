"""Tables of the simulation, in Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean

from benchmarks.watchdog_studies import HORIZON, NAIVE_RULES, DelayTally, NullTally
from benchmarks.watchdog_world import PASS_PROBES

CONFIDENCE = 0.95
GOAL_FALSE, GOAL_DELAY = 1.0, 8
"""False rollbacks per 1000 cycles, less than; cycles at the 95th percentile, at most."""


def report(nulls: Sequence[NullTally], delays: Sequence[DelayTally]) -> str:
    """The whole report."""
    parts = [*_nulls(nulls), *_rules(nulls), *_delays(delays), *_naive(nulls), *_goals(nulls, delays)]
    cycles = sum(tally.cycles for tally in nulls) + sum(tally.cycles for tally in delays)
    seconds = sum(tally.seconds for tally in nulls) + sum(tally.seconds for tally in delays)
    return "\n".join([*parts, f"{cycles:,} cycles counted, {seconds:.0f} processor seconds."])


def poisson_upper_bound(found: int, confidence: float = CONFIDENCE) -> float:
    """The largest mean under which `found` events or fewer still have a probability of 1 - `confidence`.

    Source: Garwood, Fiducial limits for the Poisson distribution (Biometrika 28, 1936); one-sided.
    """
    low, high = 0.0, 10.0 + 4.0 * found
    for _ in range(100):
        middle = (low + high) / 2
        if _poisson_at_most(found, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def percentile(delays: Sequence[int | None], share: float) -> float:
    """The smallest delay that `share` of all do not exceed; infinite when too many are never found."""
    known = sorted(math.inf if delay is None else float(delay) for delay in delays)
    return known[max(0, math.ceil(share * len(known)) - 1)]


def _poisson_at_most(found: int, mean: float) -> float:
    if mean == 0:
        return 1.0
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(found + 1))


def _nulls(nulls: Sequence[NullTally]) -> Iterator[str]:
    yield "### False rollbacks and suspicions, per 1000 cycles in which nothing went wrong\n"
    yield from _head("runs", "cycles", "false rollbacks", "found", "95 % upper bound", "false suspicions")
    for tally in nulls:
        found = tally.rollbacks.total()
        per = 1000 / tally.cycles
        bound = poisson_upper_bound(found) * per
        suspicions = tally.suspicions.total() * per
        yield _row(tally.setting, f"{tally.cycles:,}", found, f"{found * per:.2f}", f"{bound:.2f}", f"{suspicions:.1f}")
    yield ""


def _rules(nulls: Sequence[NullTally]) -> Iterator[str]:
    yield "### Which rule, in each kind of run: rollbacks, and suspicions that fresh prompts cleared or confirmed\n"
    yield from _head("rule", *(tally.setting for tally in nulls))
    for rule in sorted({rule for tally in nulls for rule in tally.rollbacks}):
        yield _row(f"rollbacks by {rule}", *(tally.rollbacks[rule] for tally in nulls))
    for probe in PASS_PROBES:
        yield _row(f"suspicions of {probe}", *(tally.suspicions[probe] for tally in nulls))
    yield ""


def _delays(delays: Sequence[DelayTally]) -> Iterator[str]:
    yield "### Cycles until the rollback, the refused candidate counted\n"
    titles = ("change", "prompts a cycle", "times", "mean", "median", "95th percentile", "never", "refused first by")
    yield from _head(*titles)
    for tally in delays:
        caught = [delay for delay in tally.delays if delay is not None]
        yield _row(
            tally.change,
            tally.behaviour_items,
            len(tally.delays),
            f"{fmean(caught):.1f}" if caught else "-",
            _cycles(percentile(tally.delays, 0.5)),
            _cycles(percentile(tally.delays, 0.95)),
            f"{1 - len(caught) / len(tally.delays):.1%}",
            _commonest(tally.rules),
        )
    yield f"\nThe mean is of those found; *never* is not within {HORIZON} cycles, which the percentiles do count.\n"


def _naive(nulls: Sequence[NullTally]) -> Iterator[str]:
    yield "### What naive rules would have refused of the same candidates, per 1000 cycles\n"
    yield from _head("rule", *(tally.setting for tally in nulls))
    for rule in NAIVE_RULES:
        yield _row(rule, *(f"{1000 * tally.naive[rule] / tally.cycles:.0f}" for tally in nulls))
    yield ""


def _goals(nulls: Sequence[NullTally], delays: Sequence[DelayTally]) -> Iterator[str]:
    yield "### Goals\n"
    yield from _head("goal", "found", "")
    for runs in (tally for tally in nulls if not tally.what_if):
        rate = 1000 * runs.rollbacks.total() / runs.cycles
        goal = f"< {GOAL_FALSE:g} false rollback per 1000 cycles: {runs.setting}"
        yield _row(goal, f"{rate:.2f}", _met(rate < GOAL_FALSE))
    for made in delays:
        late = percentile(made.delays, 0.95)
        if made.change == "accept fails 10 -> 20 %":
            goal = f"10 -> 20 % within {GOAL_DELAY} cycles in 95 %: {made.behaviour_items} prompts a cycle"
            yield _row(goal, _cycles(late), _met(late <= GOAL_DELAY))
        if made.change == "NLL up by 0.03 nats":
            yield _row("0.03 nats at once, in 95 %", _cycles(late), _met(late <= 1))
    what_if = "; ".join(tally.setting for tally in nulls if tally.what_if)
    yield f"\nHeld to no goal, since the daemon is not like that: {what_if or 'none'}.\n"


def _head(*titles: str) -> Iterator[str]:
    yield _row(*titles)
    yield _row(*("---" for _ in titles))


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _cycles(number: float) -> str:
    return f"> {HORIZON}" if math.isinf(number) else f"{number:.0f}"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _commonest(rules: Counter[str]) -> str:
    return ", ".join(f"{rule} ({count})" for rule, count in rules.most_common(3)) or "-"
