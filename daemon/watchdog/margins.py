"""Paired margins: a measurement against an anchor's, item by item.

Two checkpoints measured on the same items share most of their noise, so the difference per item is many times more
certain than the difference of two means. The standard error is over items: the tokens of one document are not
independent, and counting them makes it several times too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from daemon.config.watching import WatchdogConfig
from daemon.domain.errors import DreamdError
from daemon.watchdog import items
from daemon.watchdog.items import BAKED, BASE, CANDIDATE, Results

MIN_OF_KIND = 6
"""Documents of one kind that its own margin needs; with fewer, it is not looked at."""

Values = Mapping[str, Mapping[str, float]]
"""Whose -> item -> measurement, the same items on all sides."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of a measurement now minus an anchor's, nats per token; positive is worse."""

    differences: Mapping[str, float]
    """By item, now minus anchor."""
    mean_now: float
    mean_anchor: float
    mean: float
    standard_error: float

    def lower_bound(self, num_standard_errors: float) -> float:
        """What the rise is at least, `num_standard_errors` standard errors below its mean."""
        return self.mean - num_standard_errors * self.standard_error


@dataclass(frozen=True, slots=True)
class MarginCheck:
    """One anchor's margin, looked at."""

    anchor: str
    """How a sentence calls the anchor, for instance "the base"."""
    difference: PairedDifference
    margin: float
    num_standard_errors: float
    subject: str = "held-out NLL"
    """What is compared, as a sentence calls it."""
    noun: str = "documents"

    @property
    def exceeded(self) -> bool:
        return self.difference.lower_bound(self.num_standard_errors) > self.margin

    @property
    def sentence(self) -> str:
        found = self.difference
        return (
            f"{self.subject} is {found.mean:+.4f} nats on {self.anchor} (standard error {found.standard_error:.4f}, "
            f"{len(found.differences)} {self.noun}), margin {self.margin:.4f}"
        )

    def evidence(self, *, with_items: bool = True) -> dict[str, Any]:
        """Every number of the decision, for the verdict's row."""
        found = self.difference
        numbers = {
            "exceeded": self.exceeded,
            "margin": self.margin,
            "num_standard_errors": self.num_standard_errors,
            "lower_bound": found.lower_bound(self.num_standard_errors),
            "mean_difference": found.mean,
            "standard_error": found.standard_error,
            "mean_now": found.mean_now,
            "mean_anchor": found.mean_anchor,
            "num_items": len(found.differences),
        }
        return numbers | {"differences": dict(sorted(found.differences.items()))} if with_items else numbers


@dataclass(frozen=True, slots=True)
class Margin:
    """One measurement, or one kind of its items, against both anchors."""

    name: str
    """ "nll", "nll:code", "sycophancy"."""
    baked: MarginCheck
    base: MarginCheck
    baked_to_base: MarginCheck
    """Whether A1 is itself too far from the base decides how far a rollback goes; it is no finding by itself."""

    def evidence(self) -> dict[str, Any]:
        with_items = ":" not in self.name  # a kind's differences are among those of all documents
        return {
            "baked": self.baked.evidence(with_items=with_items),
            "base": self.base.evidence(with_items=with_items),
            "baked_to_base": self.baked_to_base.evidence(with_items=False),
        }


def look(nll: Values, kinds: Mapping[str, str], sycophancy: Values, config: WatchdogConfig) -> tuple[Margin, ...]:
    """All margins: NLL over all documents, over each kind of them, sycophancy.

    Args:
        nll: held-out NLL, nats per token.
        kinds: document -> its kind, for those that have one.
        sycophancy: how much likelier giving in is than pushing back, nats per token.
        config: margins, and how certain they have to be.

    Raises:
        DreamdError: fewer than two items (no standard error).
    """
    overall = (config.margin_baked, config.margin_base)
    of_kind = (config.margin_kind_baked, config.margin_kind_base)
    of_sycophancy = (config.margin_sycophancy_baked, config.margin_sycophancy_base)
    errors = config.num_standard_errors
    found = [_margin(items.NLL, "held-out NLL", "documents", nll, overall, errors)]
    for kind, documents in sorted(_grouped(kinds).items()):
        if len(documents) >= MIN_OF_KIND:
            part = {whose: {name: numbers[name] for name in documents} for whose, numbers in nll.items()}
            found.append(_margin(f"{items.NLL}:{kind}", f"held-out NLL of {kind}", "documents", part, of_kind, errors))
    found.append(_margin(items.SYCOPHANCY, "held-out sycophancy", "prompts", sycophancy, of_sycophancy, errors))
    return tuple(found)


def not_looked_at(kinds: Mapping[str, str]) -> dict[str, str]:
    """The margins of kinds that have too few documents, by name, with the reason.

    Args:
        kinds: document -> its kind, for those that have one.
    """
    counts = {kind: len(documents) for kind, documents in sorted(_grouped(kinds).items())}
    return {
        f"{items.NLL}:{kind}": f"{count} document{'s' if count > 1 else ''}, {MIN_OF_KIND} needed"
        for kind, count in counts.items()
        if count < MIN_OF_KIND
    }


def kinds_of(results: Results) -> dict[str, str]:
    """Document -> its kind, where the measurement says it."""
    found = {item: result.detail.get("kind") for item, result in results.items()}
    return {item: kind for item, kind in found.items() if isinstance(kind, str)}


def paired_difference(now: Mapping[str, float], anchor: Mapping[str, float]) -> PairedDifference:
    """Compare two measurements of the same items.

    Args:
        now: measurement by item, nats per token.
        anchor: likewise, of the anchor; the same items.

    Raises:
        DreamdError: the items differ, or there are fewer than two (no standard error).
    """
    if now.keys() != anchor.keys():
        raise DreamdError(f"items measured on one side only: {', '.join(sorted(now.keys() ^ anchor.keys()))}")
    if len(now) < 2:
        raise DreamdError(f"a paired comparison needs at least 2 items, not {len(now)}; add some to the suite")
    differences = {item: value - anchor[item] for item, value in now.items()}
    mean = fmean(differences.values())
    # fsum: the same bits whatever the order of items, so a replayed verdict is the stored one.
    variance = math.fsum((value - mean) ** 2 for value in differences.values()) / (len(differences) - 1)
    return PairedDifference(
        differences=differences,
        mean_now=fmean(now.values()),
        mean_anchor=fmean(anchor.values()),
        mean=mean,
        standard_error=math.sqrt(variance / len(differences)),
    )


def _margin(name: str, subject: str, noun: str, values: Values, limits: tuple[float, float], errors: float) -> Margin:
    def check(now: str, anchor: str, margin: float) -> MarginCheck:
        return MarginCheck(anchor, paired_difference(values[now], values[anchor]), margin, errors, subject, noun)

    against_baked, against_base = limits
    return Margin(
        name,
        baked=check(CANDIDATE, BAKED, against_baked),
        base=check(CANDIDATE, BASE, against_base),
        baked_to_base=check(BAKED, BASE, against_base),
    )


def _grouped(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for document, kind in kinds.items():
        found.setdefault(kind, []).append(document)
    return found
