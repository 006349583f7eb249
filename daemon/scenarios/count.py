"""How many different scenarios a template can give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from daemon.domain.hashing import scenario_hash
from daemon.scenarios.draw import generator, pick
from daemon.scenarios.fill import fill, options, placeholders
from daemon.scenarios.pack import Pack
from daemon.scenarios.schema import CalcSlot, ChooseSlot, ReplaceSlot, Template

_EXACT_LIMIT = 20_000
"""Combinations up to which every prompt is made and counted."""

_NUM_DESCENTS = 400


@dataclass(frozen=True, slots=True)
class Count:
    """Different prompts of a template."""

    number: int
    exact: bool
    """False: estimated, because there are too many to make them all."""


def count_distinct(pack: Pack, template: Template) -> Count:
    """Different prompts that `template` can give.

    Few enough are made and counted. Otherwise the number of slot combinations is estimated by random descents of
    the tree of choices, each weighing the product of its branchings (Knuth, "Estimating the efficiency of
    backtrack programs", 1975), which is exact when no choice narrows another.
    """
    slots = _used_by_prompt(template)
    estimate = _estimate(slots, pack, generator("count", pack.name, template.id))
    if estimate > _EXACT_LIMIT:
        return Count(round(estimate), exact=False)
    texts = template.texts
    return Count(
        len(
            {
                scenario_hash([(role, str(fill(text, values))) for role, text in texts])
                for values in _combinations(list(slots.items()), {}, pack)
            }
        ),
        exact=True,
    )


def _used_by_prompt(template: Template) -> dict[str, Any]:
    """The slots that the prompt shows, and those that these follow from; in the template's order."""
    needed = {name for _, text in template.texts for name, _, _ in placeholders(text)}
    for name, slot in reversed(template.slots.items()):
        if name in needed:
            needed |= _sources(slot, template.slots)
    return {name: slot for name, slot in template.slots.items() if name in needed}


def _sources(slot: Any, slots: Mapping[str, Any]) -> set[str]:
    match slot:
        case ChooseSlot():
            name, _, field = slot.choose.partition(".")
            return {*slot.unlike, *([name] if field else [])}
        case ReplaceSlot():
            part = slot.replace
            return {name for name, _, _ in placeholders([part.in_, part.find, part.with_])}
        case CalcSlot():
            return {name for name in slots if name in slot.calc}
        case _:
            return set()


def _estimate(slots: Mapping[str, Any], pack: Pack, rng: Random) -> float:
    total = 0.0
    for _ in range(_NUM_DESCENTS):
        values: dict[str, Any] = {}
        weight = 1
        for name, slot in slots.items():
            found = options(slot, values, pack.lists)
            weight *= len(found)
            values[name] = pick(rng, found)
        total += weight
    return total / _NUM_DESCENTS


def _combinations(slots: list[tuple[str, Any]], values: dict[str, Any], pack: Pack) -> Iterator[dict[str, Any]]:
    if not slots:
        yield values
        return
    (name, slot), *rest = slots
    for option in options(slot, values, pack.lists):
        yield from _combinations(rest, {**values, name: option}, pack)
