"""Find probe results by probe and item, and match two checkpoints item by item.

An item that was measured on one side only is an error everywhere here: dropping it would compare two
different suites and call the difference a change of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from daemon.domain.errors import DreamdError
from daemon.domain.probing import ProbeResult

NLL = "nll"
CHOSEN_LOGP = "chosen_logp"
TRAINER_PROBES = (NLL, CHOSEN_LOGP)
"""What the trainer alone can measure, before the engine is synced."""
ENGINE_PROBES = ("accept", "push_back")

NUM_NAMED = 5
"""Items an error names; the rest it counts."""


def of_probe(results: Sequence[ProbeResult], probe: str, whose: str) -> dict[str, ProbeResult]:
    """The results of one probe by item.

    Raises:
        DreamdError: there are none, or an item was measured twice.
    """
    found: dict[str, ProbeResult] = {}
    for result in results:
        if result.probe == probe:
            if result.item in found:
                raise DreamdError(f"probe {probe}: {whose} has two results for item {result.item}")
            found[result.item] = result
    if not found:
        raise DreamdError(f"probe {probe}: {whose} has no results; run its probes before judging")
    return found


def require_same_items(
    probe: str, now: Mapping[str, ProbeResult], anchor: Mapping[str, ProbeResult], anchor_name: str
) -> None:
    """Raises DreamdError, naming the items, unless both sides measured exactly the same ones."""
    differing = [
        f"{_named(sorted(extra))} only on {side}"
        for extra, side in ((now.keys() - anchor.keys(), "the candidate"), (anchor.keys() - now.keys(), anchor_name))
        if extra
    ]
    if differing:
        raise DreamdError(
            f"probe {probe}: the candidate and {anchor_name} were measured on different items: {'; '.join(differing)}. "
            "Set the keys of [probes] back to what they were when the run began"
        )


def finite(value: float | None) -> float | None:
    """`value`, or None when it is not a finite number: evidence is JSON, which has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def not_finite(results: Mapping[str, ProbeResult]) -> list[str]:
    """Items whose measurement was not a finite number, sorted."""
    return sorted(item for item, result in results.items() if finite(result.value) is None)


def values(results: Mapping[str, ProbeResult], probe: str, whose: str) -> dict[str, float]:
    """The measurements by item.

    Raises:
        DreamdError: one is not a finite number, in a checkpoint that was judged sound.
    """
    numbers: dict[str, float] = {}
    for item, result in results.items():
        number = finite(result.value)
        if number is None:
            broken = _named(not_finite(results))
            raise DreamdError(
                f"probe {probe}: {whose} has no finite value for {broken}; nothing can be compared with it"
            )
        numbers[item] = number
    return numbers


def mean(numbers: Mapping[str, float]) -> float:
    """Mean over items; the same bits whatever their order (`fmean` sums exactly)."""
    return fmean(numbers.values())


def _named(items: Sequence[str]) -> str:
    shown = ", ".join(items[:NUM_NAMED])
    return shown if len(items) <= NUM_NAMED else f"{shown} and {len(items) - NUM_NAMED} more"
