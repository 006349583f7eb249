"""What a cycle has drawn so far: fresh, and no two nearly the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from daemon.domain.novelty import NEAR_DUPLICATE, jaccard, scenario_shingles
from daemon.domain.records import Refusal, Scenario
from daemon.domain.states import RefusalReason, Side
from daemon.ports import Catalogue, Misfit

_MAX_RECORDED = 20
"""Expansions of templates whose refusal is recorded, per cycle: a pack that ran dry refuses thousands."""


class Basket:
    """Takes scenarios that the catalogue does not refuse and that are unlike what it holds."""

    def __init__(self, catalogue: Catalogue, misfit: Misfit) -> None:
        self.scenarios: list[Scenario] = []
        self._catalogue, self._misfit = catalogue, misfit
        self._num_recorded = 0
        self._hashes: set[str] = set()
        self._shingles: list[frozenset[int]] = []
        self._refusals: list[Refusal] = []

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Everything refused so far that is worth a row, in order."""
        return tuple(self._refusals)

    def count(self, side: Side) -> int:
        """Scenarios of a side."""
        return Counter(scenario.side for scenario in self.scenarios)[side]

    def take(self, scenario: Scenario) -> Refusal | None:
        """Take one that came from outside the packs, or say why not; the caller records the refusal."""
        problem = self._misfit(scenario)
        if problem is not None:
            return _refusal(scenario, RefusalReason.TOO_LONG, problem)
        return self._catalogue.refuse([scenario]).get(scenario.content_hash) or self._add(scenario)

    def take_first(self, candidates: Sequence[Scenario]) -> bool:
        """Take the first fresh one of a template's expansions; whether there was one.

        Near-duplicates passed over are recorded; exact repeats are not, they are the normal course of a small template.
        """
        refused = self._catalogue.refuse(candidates)
        for candidate in candidates:
            refusal = refused.get(candidate.content_hash) or self._add(candidate)
            if refusal is None:
                return True
            if refusal.reason is RefusalReason.NEAR_DUPLICATE and self._num_recorded < _MAX_RECORDED:
                self._num_recorded += 1
                self.record(refusal)
        return False

    def record(self, *refusals: Refusal) -> None:
        """Keep refusals for the run database."""
        self._refusals += refusals

    def _add(self, scenario: Scenario) -> Refusal | None:
        """Put a scenario in, unless it is nearly the same as one that is there."""
        if scenario.content_hash in self._hashes:
            return _refusal(scenario, RefusalReason.REPEATED, "in this cycle already")
        own = scenario_shingles(scenario)
        nearest = max((jaccard(own, other) for other in self._shingles), default=0.0)
        if nearest >= NEAR_DUPLICATE:
            detail = f"{nearest:.2f} like another scenario of this cycle"
            return _refusal(scenario, RefusalReason.NEAR_DUPLICATE, detail)
        self.scenarios.append(scenario)
        self._hashes.add(scenario.content_hash)
        self._shingles.append(own)
        return None


def _refusal(scenario: Scenario, reason: RefusalReason, detail: str) -> Refusal:
    text = scenario.messages[-1].content
    return Refusal(scenario.source, scenario.pack, reason, detail, scenario.provenance, text)
