"""How many of each side a cycle has, and whose turn each template is; pure functions of the cycle's number."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from random import Random

from daemon.config.sections import ScenariosConfig
from daemon.domain.records import Adjustments, Scenario
from daemon.domain.states import Side
from daemon.scenarios.draw import generator, shuffled
from daemon.scenarios.pack import Pack

_LEAST_PER_CYCLE = 4
"""Adjustments make a cycle no smaller than this: each side, and as many general."""

Family = tuple[str, str]
"""Pack and family."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One template that can be drawn from."""

    pack: str
    family: str
    template: str
    draw: Callable[[Random], Scenario]

    @property
    def key(self) -> Family:
        """Pack and family."""
        return self.pack, self.family


@dataclass(frozen=True, slots=True)
class Plan:
    """What one cycle's mixture is."""

    cycle_number: int
    seed: int
    per_cycle: int
    general_fraction: float
    favour: str | None = None
    """Pack or capability probe that half of the general scenarios come first from."""

    @property
    def wanted(self) -> dict[Side, int]:
        """Scenarios of each side."""
        return quotas(self.per_cycle, self.general_fraction, self.cycle_number)


def entries_of(packs: Sequence[Pack], side: Side, *, held_out: bool) -> list[Entry]:
    """The templates of a side, to be trained or to be measured."""
    return [
        # What ships is tried out by the project's own tests, and parsing its rules costs ten times as much as the rest.
        Entry(pack.name, template.family, template.id, partial(pack.expand, template, checked=not pack.builtin))
        for pack in packs
        for template in pack.templates
        if template.side is side and template.held_out is held_out
    ]


def plan_of(config: ScenariosConfig, adjustments: Adjustments, cycle_number: int, seed: int) -> Plan:
    """The configured mixture, as governor and breaker adjust it for one cycle."""
    per_cycle = max(round(config.per_cycle * adjustments.scenarios_factor), min(_LEAST_PER_CYCLE, config.per_cycle))
    fraction = max(config.general_fraction, adjustments.general_fraction or 0.0)
    return Plan(cycle_number, seed, per_cycle, fraction, adjustments.favour)


def resting(families: Iterable[Family], strikes: Mapping[Family, int]) -> frozenset[Family]:
    """Which of a side's families rest: at most half of them, those with most strikes first, then by name."""
    known = set(families)
    tired = sorted(known & strikes.keys(), key=lambda family: (-strikes[family], family))
    return frozenset(tired[: len(known) // 2])


def quotas(per_cycle: int, general_fraction: float, cycle_number: int) -> dict[Side, int]:
    """Scenarios of each side in one cycle.

    General is rounded up; accept and push back share the rest evenly, and when it is odd the one more
    alternates, so that over two cycles both are equal.
    """
    # Through the decimal text: 0.3 as a binary float is above 3/10 and would round 10 * 0.3 up to 4.
    general = math.ceil(per_cycle * Fraction(str(general_fraction)))
    behavioural = per_cycle - general
    more, less = behavioural - behavioural // 2, behavioural // 2
    accept, push_back = (more, less) if cycle_number % 2 else (less, more)
    return {Side.ACCEPT: accept, Side.PUSH_BACK: push_back, Side.GENERAL: general}


def num_before(per_cycle: int, general_fraction: float, cycle_number: int, side: Side) -> int:
    """Scenarios of `side` in all cycles before `cycle_number` (from 1)."""
    odd, even = (quotas(per_cycle, general_fraction, number)[side] for number in (1, 2))
    before = cycle_number - 1
    return (before + 1) // 2 * odd + before // 2 * even


def num_of_share(num_cycles: int, per_cycle: int, fraction: float) -> int:
    """Scenarios that a source with that share gives in the first `num_cycles` cycles together, rounded down.

    A cycle gets the difference to the one before, so any window of n cycles has the exact share to within one.
    """
    return math.floor(num_cycles * per_cycle * Fraction(str(fraction)))


def balanced(available: Mapping[Side, int], wanted: Mapping[Side, int], general_fraction: float) -> dict[Side, int]:
    """How many of each side to use when fewer than `wanted` could be drawn: the mixture shrinks, its shares hold.

    Accept and push back differ by at most one, and general is at least its share of what is left.
    """
    accept, push_back, general = (
        min(available[side], wanted[side]) for side in (Side.ACCEPT, Side.PUSH_BACK, Side.GENERAL)
    )
    accept, push_back = min(accept, push_back + 1), min(push_back, accept + 1)
    fraction = Fraction(str(general_fraction))
    while general < fraction * (accept + push_back + general):
        if accept > push_back:
            accept -= 1
        else:
            push_back -= 1
    return {Side.ACCEPT: accept, Side.PUSH_BACK: push_back, Side.GENERAL: general}


class Rotation:
    """An endless, even order of templates: every family once per round, its templates in turn.

    Stateless: turn `n` is the same whatever happened before, so a cycle that is planned again after a
    crash gets the same templates.
    """

    def __init__(self, entries: Sequence[Entry], label: str) -> None:
        families: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in entries:
            families[entry.pack, entry.family].append(entry)
        self._families = [
            shuffled(generator("templates", label, *key), members) for key, members in sorted(families.items())
        ]
        self._label = label
        self.num_entries = len(entries)

    def turn(self, number: int) -> Entry:
        """The template whose turn is `number` (from 0)."""
        round_number, place = divmod(number, len(self._families))
        order = shuffled(generator("round", self._label, round_number), range(len(self._families)))
        members = self._families[order[place]]
        return members[round_number % len(members)]

    def others(self, number: int) -> list[Entry]:
        """Every template once, the one of turn `number` first: where to look when that one has nothing new."""
        first = self.turn(number)
        rest = [entry for members in self._families for entry in members if entry is not first]
        return [first, *shuffled(generator("others", self._label, number), rest)]
