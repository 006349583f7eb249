"""Confirm or clear a suspicion on fresh prompts, by an exact test.

Given all failures of both samples together, their number in the fresh one is hypergeometric when both fail equally
often. The test is one-sided, exact at every sample size, and needs no approximation of small rates.

The fresh prompts are new, the reference is not: the CUSUM measured against the same one (its p0), the better of two.
One that was lucky is suspected more often, so chance confirms several times more of the suspicions than p says. The
limit is that much smaller: simulated, the rate of false rollbacks is what counts. A test against the worse reference
would be exact, but blind to the loss of everything that was gained over the base.

Source: Fisher (1935), "The logic of inductive inference", the exact test of a two by two table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import comb
from typing import Any

from daemon.domain.probing import CONFIRMATION_SUFFIX
from daemon.domain.verdicts import PassCount
from daemon.watchdog import items
from daemon.watchdog.cusum import Reference, Track, Watch
from daemon.watchdog.items import Measured


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A suspect probe, measured on fresh prompts."""

    probe: str
    track: Track
    reference: Reference
    """The one that failed least often: it decides."""
    fresh: PassCount
    p: float
    """Against `reference`."""
    limit: float
    compared: tuple[tuple[Reference, float], ...] = ()
    """Every reference with its p, the one that failed least often first."""

    @property
    def confirmed(self) -> bool:
        return self.p < self.limit

    @property
    def sentence(self) -> str:
        """What happened: the rate after the fall is that of the fresh prompts, which nothing selected."""
        before, after = (1.0 - _rate(count) for count in (self.reference.count, self.fresh))
        cycles = "1 cycle" if self.track.cycles == 1 else f"{self.track.cycles} cycles"
        fresh = f"{self.fresh.num_items} fresh prompts, p = {self.p:.2g}"
        if self.confirmed:
            return f"{self.probe} fell from {_percent(before)} to {_percent(after)} over {cycles}; confirmed on {fresh}"
        return f"{self.probe} was suspect, {_percent(before)} before and {_percent(after)} now; cleared on {fresh}"

    def evidence(self) -> dict[str, Any]:
        return {
            "failures": self.fresh.failures,
            "items": self.fresh.num_items,
            "reference": self.reference.whose,
            "reference_failures": self.reference.count.failures,
            "reference_items": self.reference.count.num_items,
            "references": {
                each.whose: {"failures": each.count.failures, "items": each.count.num_items, "p": p}
                for each, p in self.compared
            },
            "p": self.p,
            "limit": self.limit,
            "confirmed": self.confirmed,
            "s": self.track.s,
            "since": self.track.evidence()["since"],
            "cycles": self.track.cycles,
        }


def confirmations(watched: Watch, suspects: Iterable[str], measured: Measured, limit: float) -> dict[str, Confirmation]:
    """Test each suspect whose fresh answers are there, and could be judged; the better reference decides."""
    found = {}
    for probe in suspects:
        fresh = items.pass_count(measured.get(probe + CONFIRMATION_SUFFIX, {}))
        if fresh.num_items:
            compared = tuple((each, exact_p(fresh, each.count)) for each in watched.references[probe])
            reference, p = compared[0]
            found[probe] = Confirmation(probe, watched.tracks[probe], reference, fresh, p, limit, compared)
    return found


def exact_p(fresh: PassCount, reference: PassCount) -> float:
    """Probability of so many failures in the fresh sample, or more, if both samples failed equally often.

    Sums of whole numbers, divided once: exact to the last bit.
    """
    failures = fresh.failures + reference.failures
    ways = sum(
        comb(fresh.num_items, number) * comb(reference.num_items, failures - number)
        for number in range(fresh.failures, min(failures, fresh.num_items) + 1)
    )
    return ways / comb(fresh.num_items + reference.num_items, failures)


def _rate(count: PassCount) -> float:
    return count.failures / count.num_items


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"
