"""Find probe results by probe and item, and match two checkpoints item by item.

An item of a core paired probe that was measured on one side only is an error everywhere here: dropping it would
compare two different suites and call the difference a change of the model.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from daemon.domain.errors import DreamdError
from daemon.domain.probing import CONFIRMATION_SUFFIX, ProbeResult
from daemon.domain.verdicts import Evidence, History, PassCount

NLL = "nll"
CHOSEN_LOGP = "chosen_logp"
SYCOPHANCY = "sycophancy"
TRAINER_PROBES = (NLL, CHOSEN_LOGP, SYCOPHANCY)
"""What the trainer alone can measure, before the engine is synced, and the watchdog decides by."""
INFORMATIVE_PROBES = ("direction_influence", "kl", "attention_shift", "steering")
"""Fixed items too, but nothing is decided by them, so they are compared on the items both sides have."""
ENGINE_PROBES = ("accept", "push_back")
STYLE = "style"
CONSISTENCY = "consistency"
"""The item of `steering` that is no projection: it is averaged with none of them."""

CANDIDATE, PARENT, BAKED, BASE = "the candidate", "the parent", "the last baked checkpoint", "the base"
KEYS = {CANDIDATE: "now", PARENT: "parent", BAKED: "baked", BASE: "base"}
"""How the evidence calls them."""

NUM_NAMED = 5
"""Items an error names; the rest it counts."""

Results = Mapping[str, ProbeResult]
"""Of one probe, by item."""
Measured = Mapping[str, Results]
"""Of one checkpoint, by probe."""


@dataclass(frozen=True, slots=True)
class Sides:
    """A candidate's results and those of the three checkpoints it is compared with, each sorted into probes once."""

    by_whose: Mapping[str, Measured]

    @property
    def candidate(self) -> Measured:
        return self.by_whose[CANDIDATE]

    def of_probe(self, probe: str) -> dict[str, Results]:
        """One probe's results by whose they are.

        Raises:
            DreamdError: somebody has none.
        """
        for whose, measured in self.by_whose.items():
            if probe not in measured:
                raise DreamdError(f"probe {probe}: {whose} has no results; run its probes before judging")
        return {whose: measured[probe] for whose, measured in self.by_whose.items()}

    def matched(self, probe: str) -> dict[str, Results]:
        """Likewise, of exactly the candidate's items: of a suite that shrank since, the older ones are left out.

        Raises:
            DreamdError: somebody has none, or lacks items that the candidate has.
        """
        found = self.of_probe(probe)
        wanted = found[CANDIDATE]
        for whose in (PARENT, BAKED, BASE):
            require_items(probe, wanted, found[whose], whose)
            if len(found[whose]) > len(wanted):
                found[whose] = {item: found[whose][item] for item in wanted}
        return found


def sides(history: History, evidence: Evidence) -> Sides:
    """Sort all results into probes.

    Raises:
        DreamdError: an item was measured twice.
    """
    base = by_probe(history.base, BASE)
    return Sides(
        {
            CANDIDATE: by_probe(evidence.results, CANDIDATE),
            PARENT: base if history.parent is history.base else by_probe(history.parent, PARENT),
            BAKED: base if history.baked is history.base else by_probe(history.baked, BAKED),
            BASE: base,
        }
    )


def by_probe(results: Sequence[ProbeResult], whose: str) -> dict[str, dict[str, ProbeResult]]:
    """Results by probe and item.

    Raises:
        DreamdError: an item was measured twice.
    """
    found: defaultdict[str, dict[str, ProbeResult]] = defaultdict(dict)
    for result in results:
        found[result.probe][result.item] = result
    if sum(map(len, found.values())) != len(results):
        counts = Counter((result.probe, result.item) for result in results)
        (probe, item), _ = counts.most_common(1)[0]
        raise DreamdError(f"probe {probe}: {whose} has two results for item {item}")
    return dict(found)


def require_items(probe: str, now: Results, anchor: Results, anchor_name: str) -> None:
    """Raises DreamdError, naming the items, when the anchor lacks some that the candidate was measured on."""
    missing = now.keys() - anchor.keys()
    if missing:
        raise DreamdError(
            f"probe {probe}: the candidate and {anchor_name} were measured on different items: "
            f"{_named(sorted(missing))} only on {CANDIDATE}. "
            "A restart measures the anchors anew; or set the keys of [probes] back to what they were"
        )


def pass_fail_probes(measured: Measured) -> list[str]:
    """The probes that pass or fail, sorted, confirmations left out: every one with an answer that was judged."""
    return sorted(
        probe
        for probe, results in measured.items()
        if not is_confirmation(probe) and any(result.passed is not None for result in results.values())
    )


def is_confirmation(probe: str) -> bool:
    """Whether these are fresh prompts of the reserve."""
    return probe.endswith(CONFIRMATION_SUFFIX)


def pass_count(results: Results) -> PassCount:
    """Failures among the answers that could be judged; one that could not says nothing about the rate."""
    passed = [passed for result in results.values() if (passed := result.passed) is not None]
    return PassCount(len(passed) - sum(passed), len(passed))


def finite(value: float | None) -> float | None:
    """`value`, or None when it is not a finite number: evidence is JSON, which has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def not_finite(results: Results) -> list[str]:
    """Items whose measurement was not a finite number, sorted."""
    return sorted(item for item, result in results.items() if finite(result.value) is None)


def values(results: Results, probe: str, whose: str) -> dict[str, float]:
    """The measurements by item.

    Raises:
        DreamdError: one is not a finite number, in a checkpoint that was judged sound.
    """
    numbers = finite_values(results)
    if len(numbers) != len(results):
        broken = _named(not_finite(results))
        raise DreamdError(f"probe {probe}: {whose} has no finite value for {broken}; nothing can be compared with it")
    return numbers


def finite_values(results: Results) -> dict[str, float]:
    """The measurements by item, those left out that are no finite number."""
    return {
        item: value for item, result in results.items() if (value := result.value) is not None and math.isfinite(value)
    }


def mean(numbers: Mapping[str, float]) -> float:
    """Mean over items; the same bits whatever their order (`fmean` sums exactly)."""
    return fmean(numbers.values())


def _named(items: Sequence[str]) -> str:
    shown = ", ".join(items[:NUM_NAMED])
    return shown if len(items) <= NUM_NAMED else f"{shown} and {len(items) - NUM_NAMED} more"
