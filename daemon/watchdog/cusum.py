"""Sequential detectors of a falling pass rate: the CUSUM decides whom to suspect, the e-detector is an audit figure.

    S = max(0, S + f ln(p1/p0) + (n - f) ln((1-p1)/(1-p0)))        f failures among n answers
    E = (E + 1) exp(f ln(p1/p0) + (n - f) ln((1-p1)/(1-p0)))

Where S was last zero is the change point: up to there nothing spoke for a fall. The state travels in the evidence of
each promoted candidate's verdict to the next one.

Source: Page (1954), "Continuous inspection schemes"; Shin, Ramdas and Rinaldo (2023), "E-detectors: a nonparametric
framework for sequential change detection", the Shiryaev-Roberts e-detector and the mean over several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from daemon.config.watching import WatchdogConfig
from daemon.domain.verdicts import Anchor, History, PassCount
from daemon.watchdog import items
from daemon.watchdog.items import Measured

MIN_RATE = 0.02
"""Least failure rate that a reference counts as: with a smaller one, a single failure would be half a proof."""
MAX_RATE = 0.9
"""Above this there is nothing left to lose."""
FORGOTTEN_AFTER = 30
"""Promoted steps without a measurement after which a probe's detectors begin anew: they knew another policy."""


@dataclass(frozen=True, slots=True)
class Reference:
    """How often a checkpoint failed that others are compared with."""

    whose: str
    """ "base" or "baked"."""
    count: PassCount

    @property
    def failure_rate(self) -> float:
        return self.count.failures / self.count.num_items


@dataclass(frozen=True, slots=True)
class Track:
    """One probe's detectors."""

    s: float
    since: Anchor
    """The checkpoint at which S was last 0: the last sound one, by this probe."""
    cycles: int
    """Promoted steps since then, up to the newest measurement; likewise the next two."""
    failures: int
    num_items: int
    p0: float
    log_e: float | None
    """Logarithm of E; None: it was never measured, E is 0."""
    measured: bool
    """In this cycle."""

    def last_measured(self, parent: Anchor) -> int:
        """Promoted steps from the base to the newest measurement.

        Args:
            parent: whose verdict stored this state.
        """
        return parent.depth if self.measured else self.since.depth + self.cycles

    def evidence(self) -> dict[str, Any]:
        return {
            "s": self.s,
            "since": {"version": self.since.version, "cycle": self.since.cycle_number, "depth": self.since.depth},
            "cycles": self.cycles,
            "failures": self.failures,
            "items": self.num_items,
            "p0": self.p0,
            "measured": self.measured,
        }

    def cleared(self, parent: Anchor) -> Track:
        """The same with S at 0: the suspicion was not confirmed."""
        return replace(self, s=0.0, since=parent, cycles=0, failures=0, num_items=0, measured=True)


@dataclass(frozen=True, slots=True)
class Watch:
    """The detectors of all pass/fail probes after one cycle."""

    tracks: Mapping[str, Track]
    references: Mapping[str, tuple[Reference, ...]]
    """Those with enough answers, by probe, at least one; the one that failed least often, which p0 is of, first."""
    not_watched: Mapping[str, str]
    """Probe -> why."""

    def evidence(self) -> dict[str, Any]:
        """What the next cycle's `History.detectors` is."""
        return {
            "cusum": {probe: track.evidence() for probe, track in self.tracks.items()},
            "e": {probe: track.log_e for probe, track in self.tracks.items()},
            "e_mean_log": _mean_log([track.log_e for track in self.tracks.values()]),
            "not_watched": dict(self.not_watched),
        }


def watch(history: History, measured: Measured, config: WatchdogConfig) -> Watch:
    """Advance every detector by what this cycle measured; a probe that was not measured keeps its state for a while.

    Args:
        history: the parent's detectors, and how often the references failed.
        measured: the candidate's results.
        config: thresholds.
    """
    counts = {probe: items.pass_count(measured[probe]) for probe in items.pass_fail_probes(measured)}
    known = {probe for probe in history.references if not items.is_confirmation(probe)}
    tracks: dict[str, Track] = {}
    references: dict[str, tuple[Reference, ...]] = {}
    not_watched: dict[str, str] = {}
    depth = history.parent_anchor.depth + 1
    before = {
        probe: track
        for probe, track in _stored(history.detectors).items()
        if probe in counts or depth - track.last_measured(history.parent_anchor) <= FORGOTTEN_AFTER
    }
    for probe in sorted(counts.keys() | known | before.keys()):
        found = _references(probe, history, config)
        if isinstance(found, str):
            not_watched[probe] = found
            continue
        references[probe] = found
        p0 = max(found[0].failure_rate, MIN_RATE)
        tracks[probe] = _advance(before.get(probe), counts.get(probe), p0, config.odds_ratio, history.parent_anchor)
    return Watch(tracks, references, not_watched)


def large_enough(counts: Mapping[str, PassCount], reference_items: int) -> tuple[Reference, ...]:
    """The references with nine tenths of `reference_items` judged answers, the one that failed least often first."""
    least = enough(reference_items)
    found = (Reference(whose, count) for whose, count in sorted(counts.items()) if count.num_items >= least)
    return tuple(sorted(found, key=lambda each: each.failure_rate))


def enough(reference_items: int) -> int:
    """Judged answers that a reference needs: one that nobody could judge must not unwatch its probe for ever."""
    return max((9 * reference_items + 9) // 10, 1)


def log_likelihood_ratio(failures: int, num_items: int, p0: float, odds_ratio: float) -> float:
    """How much likelier `failures` are when the odds of one are `odds_ratio` times those of p0, as a logarithm."""
    p1 = odds_ratio * p0 / (1.0 - p0 + odds_ratio * p0)
    return failures * math.log(p1 / p0) + (num_items - failures) * math.log((1.0 - p1) / (1.0 - p0))


def scores(detectors: Mapping[str, Any]) -> dict[str, float]:
    """Probe -> S, of stored detectors."""
    return {probe: float(state["s"]) for probe, state in sorted(detectors.get("cusum", {}).items())}


_NAMES = {"base": items.BASE, "baked": items.BAKED}


def _references(probe: str, history: History, config: WatchdogConfig) -> tuple[Reference, ...] | str:
    """What the probe is compared with, the best first, or why it is not watched."""
    depth = history.parent_anchor.depth + 1
    if depth <= config.warmup_cycles:
        return f"warming up: promoted step {depth} of {config.warmup_cycles} before pass rates decide"
    found = large_enough(history.references.get(probe, {}), config.reference_items)
    if not found:
        return f"warming up: no reference has {enough(config.reference_items)} answers yet"
    if found[0].failure_rate > MAX_RATE:
        return f"nothing left to lose: {found[0].failure_rate:.0%} fail on {_NAMES[found[0].whose]}"
    return found


def _advance(before: Track | None, count: PassCount | None, p0: float, odds_ratio: float, parent: Anchor) -> Track:
    if before is None:
        before = Track(0.0, parent, 0, 0, 0, p0, None, measured=False)
    elif before.s == 0.0 and before.measured:
        # The parent is the candidate at which S was 0. A probe that was not measured since then proves nothing of it.
        before = replace(before, since=parent)
    if count is None:
        return replace(before, p0=p0, measured=False)
    ratio = log_likelihood_ratio(count.failures, count.num_items, p0, odds_ratio)
    log_e = _log_plus_one(before.log_e) + ratio
    s = before.s + ratio
    if s <= 0.0:
        return Track(0.0, before.since, 0, 0, 0, p0, log_e, measured=True)
    return Track(
        s=s,
        since=before.since,
        cycles=parent.depth + 1 - before.since.depth,
        failures=before.failures + count.failures,
        num_items=before.num_items + count.num_items,
        p0=p0,
        log_e=log_e,
        measured=True,
    )


def _stored(detectors: Mapping[str, Any]) -> dict[str, Track]:
    log_e = detectors.get("e", {})
    return {
        probe: Track(
            s=float(state["s"]),
            since=Anchor(state["since"]["version"], state["since"]["cycle"], state["since"]["depth"]),
            cycles=state["cycles"],
            failures=state["failures"],
            num_items=state["items"],
            p0=state["p0"],
            log_e=log_e.get(probe),
            measured=state.get("measured", True),
        )
        for probe, state in detectors.get("cusum", {}).items()
    }


def _log_plus_one(log_e: float | None) -> float:
    """ln(E + 1) from ln E, without computing E, which overflows."""
    if log_e is None:
        return 0.0
    return max(log_e, 0.0) + math.log1p(math.exp(-abs(log_e)))


def _mean_log(log_es: list[float | None]) -> float | None:
    """Logarithm of the mean of E; None when every E is 0."""
    known = [log_e for log_e in log_es if log_e is not None]
    if not known:
        return None
    largest = max(known)
    return largest + math.log(math.fsum(math.exp(log_e - largest) for log_e in known) / len(log_es))
