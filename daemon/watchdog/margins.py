"""Paired margins: held-out NLL against an anchor, document by document.

Two checkpoints measured on the same documents share most of their noise, so the difference per document
is many times more certain than the difference of two means. The standard error is over documents:
tokens of one document are not independent, and counting them makes it several times too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from daemon.domain.errors import DreamdError


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean NLL now minus NLL of an anchor, nats per token; positive is worse."""

    differences: Mapping[str, float]
    """By document, now minus anchor."""
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

    @property
    def exceeded(self) -> bool:
        return self.difference.lower_bound(self.num_standard_errors) > self.margin

    @property
    def sentence(self) -> str:
        found = self.difference
        return (
            f"held-out NLL is {found.mean:+.4f} nats on {self.anchor} (standard error {found.standard_error:.4f}, "
            f"{len(found.differences)} documents), margin {self.margin:.4f}"
        )

    def evidence(self) -> dict[str, Any]:
        """Every number of the decision, for the verdict's row."""
        found = self.difference
        return {
            "exceeded": self.exceeded,
            "margin": self.margin,
            "num_standard_errors": self.num_standard_errors,
            "lower_bound": found.lower_bound(self.num_standard_errors),
            "mean_difference": found.mean,
            "standard_error": found.standard_error,
            "mean_now": found.mean_now,
            "mean_anchor": found.mean_anchor,
            "num_documents": len(found.differences),
            "differences": dict(sorted(found.differences.items())),
        }


def paired_difference(now: Mapping[str, float], anchor: Mapping[str, float]) -> PairedDifference:
    """Compare two measurements of the same documents.

    Args:
        now: NLL by document, nats per token.
        anchor: likewise, of the anchor; the same documents.

    Raises:
        DreamdError: the documents differ, or there are fewer than two (no standard error).
    """
    if now.keys() != anchor.keys():
        raise DreamdError(f"documents measured on one side only: {', '.join(sorted(now.keys() ^ anchor.keys()))}")
    if len(now) < 2:
        raise DreamdError(f"a paired comparison needs at least 2 documents, not {len(now)}; raise probes.nll_documents")
    differences = {document: now[document] - anchor[document] for document in now}
    mean = fmean(differences.values())
    # fsum: the same bits whatever the order of documents, so a replayed verdict is the stored one.
    variance = math.fsum((value - mean) ** 2 for value in differences.values()) / (len(differences) - 1)
    return PairedDifference(
        differences=differences,
        mean_now=fmean(now.values()),
        mean_anchor=fmean(anchor.values()),
        mean=mean,
        standard_error=math.sqrt(variance / len(differences)),
    )
