"""Which probes a cycle measures; a pure function of what it cost before and when it was last done.

core            every cycle, whatever it costs: the watchdog decides by it
the rest        when its interval is over, the most overdue first, while the budget lasts
starved ones    one per cycle over the budget, once six intervals have passed
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from daemon.config.watching import ProbesConfig
from daemon.domain.probing import ProbeBudget, ProbeRequest
from daemon.domain.records import Adjustments
from daemon.domain.states import ProbeReason
from daemon.probes import names

STARVED = 6.0
"""Intervals after which a probe is measured even over the budget."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A probe that may be measured in this cycle."""

    probe: str
    turn: int
    overdue: float
    """Intervals since it was last measured; due from 1 on."""


def plan(
    cycle_number: int,
    budget: ProbeBudget,
    config: ProbesConfig,
    adjustments: Adjustments,
    eager: bool,
    capabilities: Sequence[str],
) -> tuple[ProbeRequest, ...]:
    """What to measure of a cycle's candidate: the core, then what is due and fits.

    Args:
        eager: every interval is one cycle.
        capabilities: rotating pools beside `accept` and `push_back`.
    """
    core = [*names.CORE_TRAINER, *names.CORE_ENGINE]
    share = min(1.0, config.budget * adjustments.probe_factor)
    costs = [budget.seconds.get(probe, 0.0) for probe in core]
    left = _allowed_seconds(share, budget) - sum(costs)
    candidates = _candidates(cycle_number, budget, config, eager, capabilities)
    taken = candidates if share == 1.0 else _take(candidates, budget, left, max(costs))
    reason = ProbeReason.SUSPICION if eager else ProbeReason.SCHEDULED
    return (
        *(ProbeRequest(probe, ProbeReason.CORE) for probe in names.CORE_TRAINER),
        *(ProbeRequest(probe, ProbeReason.CORE, cycle_number - 1) for probe in names.CORE_ENGINE),
        *(ProbeRequest(candidate.probe, reason, candidate.turn) for candidate in taken),
    )


def anchor_plan(num_items: int | None, config: ProbesConfig, capabilities: Sequence[str]) -> tuple[ProbeRequest, ...]:
    """What a checkpoint that others are compared with needs.

    `kl`, `attention_shift` and `steering` are left out: they look at the base or at the policy by themselves.

    Args:
        num_items: of each pool, in requests of the usual size; None: what is compared item by item in every cycle.
    """
    if num_items is None:
        return tuple(ProbeRequest(probe, ProbeReason.ANCHOR) for probe in names.CORE_TRAINER)
    fixed = (*names.CORE_TRAINER, names.DIRECTION_INFLUENCE)
    return (
        *(ProbeRequest(probe, ProbeReason.ANCHOR) for probe in fixed),
        *(
            ProbeRequest(probe, ProbeReason.ANCHOR, turn)
            for probe in (*names.CORE_ENGINE, *capabilities)
            for turn in range(math.ceil(num_items / usual_count(probe, config)))
        ),
    )


def usual_count(probe: str, config: ProbesConfig) -> int:
    """Items of a rotating pool per measurement."""
    return config.behaviour_items if probe in names.CORE_ENGINE else config.capability_items


def _allowed_seconds(share: float, budget: ProbeBudget) -> float:
    """Seconds of probes that are `share` of a cycle whose other stages take `cycle_seconds`."""
    if share == 1.0 or budget.cycle_seconds is None:
        return math.inf
    return share / (1.0 - share) * budget.cycle_seconds


def _candidates(
    cycle_number: int, budget: ProbeBudget, config: ProbesConfig, eager: bool, capabilities: Sequence[str]
) -> list[_Candidate]:
    """What is due, the most overdue first, ties by name."""
    found = []
    for probe, interval in _intervals(config, capabilities):
        every = 1 if eager else interval
        overdue = (cycle_number - budget.last_cycle.get(probe, 0)) / every
        if overdue >= 1.0:
            turn = cycle_number // every if probe in capabilities else 0
            found.append(_Candidate(probe, turn, overdue))
    return sorted(found, key=lambda candidate: (-candidate.overdue, candidate.probe))


def _intervals(config: ProbesConfig, capabilities: Sequence[str]) -> Iterator[tuple[str, int]]:
    yield names.DIRECTION_INFLUENCE, 1
    yield from ((probe, config.capability_every) for probe in capabilities)
    yield from ((probe, config.internals_every) for probe in names.INTERNALS)


def _take(candidates: Sequence[_Candidate], budget: ProbeBudget, left: float, dearest: float) -> Iterator[_Candidate]:
    """What fits into the seconds `left`, and one starved probe.

    A probe of unknown cost counts like the dearest one of the core, and one a cycle is enough: the first cycles must
    not measure everything at once.
    """
    unknown = rescued = False
    for candidate in candidates:
        cost = budget.seconds.get(candidate.probe)
        if cost is None and unknown:
            continue
        seconds = dearest if cost is None else cost
        if seconds <= left or (candidate.overdue >= STARVED and not rescued):
            unknown = unknown or cost is None
            rescued = rescued or seconds > left
            left -= seconds
            yield candidate
