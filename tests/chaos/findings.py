"""What a check looked at, and what it found wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Findings:
    """Counts of what was compared, and a sentence for each violation."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def check(self, what: str, holds: bool, violation: str) -> bool:
        """Count one comparison of `what` ("I1 ..."); note `violation` when it does not hold."""
        self.counts[what] += 1
        if not holds:
            self.violations.append(f"{what[:2]}: {violation}")
        return holds

    def report(self) -> str:
        lines = [f"  {what}: {count}" for what, count in sorted(self.counts.items())]
        lines += [f"VIOLATION {violation}" for violation in self.violations]
        return "\n".join([*lines, f"{sum(self.counts.values())} comparisons, {len(self.violations)} violations"])
