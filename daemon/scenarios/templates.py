"""Templates fill a cycle up: families in turn, those that rest left out, those of a favoured pack first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from daemon.domain.states import Side, Source
from daemon.scenarios import general
from daemon.scenarios.basket import Basket
from daemon.scenarios.draw import generator
from daemon.scenarios.held_out import capability
from daemon.scenarios.mixture import Entry, Family, Plan, Rotation, num_before, resting

_TRIES = 64
"""Expansions tried of one template before the next template of the same side is tried."""

Event = tuple[str, Mapping[str, Any]]
Order = Callable[[int], Sequence[Entry]]
"""Turn -> every template, the one whose turn it is first."""


class Templates:
    """Every trainable template, by side."""

    def __init__(self, entries: Mapping[Side, Sequence[Entry]]) -> None:
        self._entries = entries
        self._rotations = {side: Rotation(members, side.value) for side, members in entries.items()}

    def num_favoured(self, plan: Plan) -> int:
        """How many of a cycle's general scenarios the favoured pack comes first for: half, rounded up."""
        return (plan.wanted[Side.GENERAL] + 1) // 2 if self._favoured(plan.favour) else 0

    def fill(self, plan: Plan, basket: Basket, strikes: Mapping[Family, int]) -> list[Event]:
        """Fill every side of the basket up to what the plan wants; returns what rests and what ran dry.

        Args:
            strikes: families that should rest, and how often they were in a batch that was rolled back.
        """
        events: list[Event] = []
        num_resting = 0
        for side, count in plan.wanted.items():
            asleep = resting((entry.key for entry in self._entries[side]), strikes)
            num_resting += len(asleep)
            if side is Side.GENERAL:
                self._favour(plan, basket, asleep)
            if not self._fill_side(plan, side, basket, asleep):
                payload = {"source": Source.TEMPLATE.value, "side": side.value}
                events.append(("source_dry", payload | {"missing": count - basket.count(side)}))
        if num_resting:
            events.append(("families_resting", {"count": num_resting}))
        return events

    def _fill_side(self, plan: Plan, side: Side, basket: Basket, asleep: frozenset[Family]) -> bool:
        """Fill one side up, in rotation; False: nothing is left, not even of what rests."""
        order = self._order(side, asleep)
        first = num_before(plan.per_cycle, plan.general_fraction, plan.cycle_number, side)
        return all(
            _take(order(turn), ("scenario", plan.seed, side.value, turn), basket)
            for turn in range(first, first + plan.wanted[side] - basket.count(side))
        )

    def _favour(self, plan: Plan, basket: Basket, asleep: frozenset[Family]) -> None:
        """Take the favoured pack's share of the general scenarios, as far as it has something new."""
        entries = [entry for entry in self._favoured(plan.favour) if entry.key not in asleep]
        if not entries:
            return
        rotation, most = Rotation(entries, "favour"), self.num_favoured(plan)
        first = (plan.cycle_number - 1) * most
        for turn in range(first, first + min(most, plan.wanted[Side.GENERAL] - basket.count(Side.GENERAL))):
            if not _take(rotation.others(turn), ("favour", plan.seed, turn), basket):
                return

    def _favoured(self, favour: str | None) -> list[Entry]:
        """General templates of the pack, and of the general tasks that have its name or its probe's."""
        if favour is None:
            return []
        return [
            entry
            for entry in self._entries[Side.GENERAL]
            if favour in (entry.pack, capability(entry.pack))
            or (entry.pack == general.PACK and entry.family in (favour, capability(favour)))
        ]

    def _order(self, side: Side, asleep: frozenset[Family]) -> Order:
        """The side's rotation; what rests comes after everything else."""
        entries = self._entries[side]
        if not entries:
            return lambda turn: ()
        if not asleep:
            return self._rotations[side].others
        awake = Rotation([entry for entry in entries if entry.key not in asleep], side.value)
        rest = Rotation([entry for entry in entries if entry.key in asleep], side.value)
        return lambda turn: [*awake.others(turn), *rest.others(turn)]


def _take(order: Sequence[Entry], seed: tuple[int | str, ...], basket: Basket) -> bool:
    """Take a fresh expansion of the first template in the order that has one."""
    for entry in order:
        rng = generator(*seed, entry.pack, entry.template)
        # Few at first: nearly always the first is fresh, and each one asked for is a database look-up.
        for num_tries in (4, _TRIES):
            if basket.take_first([entry.draw(rng) for _ in range(num_tries)]):
                return True
    return False
