"""What a verdict's evidence says beside the decision: means, pass rates, differences from the base, style."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from daemon.watchdog import items
from daemon.watchdog.items import BASE, CANDIDATE, KEYS, Results, Sides


def means(sides: Sides, probes: Iterable[str]) -> dict[str, dict[str, float]]:
    """Mean value by probe, of whom has one; items that are no finite number are left out."""
    found: dict[str, dict[str, float]] = {}
    for probe in sorted(probes):
        for whose, measured in sides.by_whose.items():
            numbers = _values(probe, measured[probe]) if probe in measured else {}
            if numbers:
                found.setdefault(probe, {})[KEYS[whose]] = items.mean(numbers)
    return found


def averaged(sides: Sides) -> set[str]:
    """The candidate's probes whose items can be averaged: style's have no unit in common."""
    return {probe for probe in sides.candidate if probe != items.STYLE and not items.is_confirmation(probe)}


def differences(sides: Sides, probes: Iterable[str]) -> dict[str, float]:
    """Mean difference from the base over the items that both measured, by probe."""
    found = {}
    for probe in sorted(probes):
        now, base = (_values(probe, sides.by_whose[whose].get(probe, {})) for whose in (CANDIDATE, BASE))
        common = {item: value - base[item] for item, value in now.items() if item in base}
        if common:
            found[probe] = items.mean(common)
    return found


def pass_rates(sides: Sides, probes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Share passed by probe, None of whom has no answer that was judged, and how many answers the candidate has."""
    rates: dict[str, dict[str, Any]] = {}
    for probe in sorted(probes):
        counts = {whose: items.pass_count(measured.get(probe, {})) for whose, measured in sides.by_whose.items()}
        rates[probe] = {
            KEYS[whose]: (count.num_items - count.failures) / count.num_items if count.num_items else None
            for whose, count in counts.items()
        }
        rates[probe]["num_items"] = counts[CANDIDATE].num_items
    return rates


def style(sides: Sides) -> dict[str, dict[str, float | None]]:
    """Each figure of style now and on the base, and how many of the base's standard deviations lie between."""
    now, base = (sides.by_whose[whose].get(items.STYLE, {}) for whose in (CANDIDATE, BASE))
    return {item: _compared(result.value, base, item) for item, result in sorted(now.items())}


def _compared(value: float | None, base: Results, item: str) -> dict[str, float | None]:
    usual = items.finite(base[item].value) if item in base else None
    spread = items.finite(base[item].detail.get("sd")) if item in base else None
    number = items.finite(value)
    shift = (number - usual) / spread if number is not None and usual is not None and spread else None
    return {"now": number, "base": usual, "base_sd": spread, "shift": items.finite(shift)}


def _values(probe: str, results: Results) -> Mapping[str, float]:
    numbers = items.finite_values(results)
    if probe == "steering":
        numbers.pop(items.CONSISTENCY, None)
    return numbers
