"""What the governor's rules look at: finished cycles, earlier decisions, and what these mean for each setting now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.config.watching import GovernorConfig
from daemon.domain.states import GovernorMode, GovernorRule, Knob, Objective, Outcome
from daemon.domain.verdicts import CycleRecord, GovernorDecision

FACTORS = (Knob.LR, Knob.ORPO_WEIGHT, Knob.SCENARIOS, Knob.PROBES)
"""Settings that are multiplied; 1.0 changes nothing. The others are replaced; None changes nothing."""
_MAX_REFERENCE_LR = 1e-6
"""Objectives with a reference break a model above this: they are never raised further, whatever `max_lr` says."""
_LEAST_SCENARIOS = 2
"""`scenarios.per_cycle` is at least this, and stays so."""
WEAKEST_ORPO = 0.5
MOST_PROBES = 2.0

Value = str | float | None


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """The settings that the governor's factors apply to."""

    lr: float
    """Of the training plan now."""
    objective: Objective
    """Likewise."""
    per_cycle: int
    general_fraction: float
    orpo_weight: float
    packs: frozenset[str] = field(default_factory=frozenset)
    """The user's packs with general scenarios; the built-in ones are known."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One moment: before cycle `cycle_number`, with the cycles and decisions before it."""

    config: GovernorConfig
    base: BaseSettings
    cycle_number: int
    records: Sequence[CycleRecord]
    """Oldest first, all before `cycle_number`."""
    decisions: Sequence[GovernorDecision]
    """Oldest first, none for a later cycle."""

    # --- settings ------------------------------------------------------------------------------------------

    def value(self, knob: Knob) -> Value:
        """What its newest decision says, to its last cycle, within bounds; the neutral value without one.

        After a decision's last cycle the newest lasting one is in force again where it lowers the setting, never where
        it raises it. A decision that was advice only never counts, and none does unless the governor acts.
        """
        found = [d for d in self.decisions if d.knob is knob and d.applied and self._is_meant(d)]
        if self.config.mode is not GovernorMode.ACT or not found:
            return neutral(knob)
        if not self._is_over(found[-1]):
            return self.bounded(knob, found[-1].to_value)
        lasting = self.newest_lasting(knob)
        if lasting is None or lasting.to_value is None or knob not in FACTORS:
            return neutral(knob)
        return self.bounded(knob, min(1.0, float(lasting.to_value)))

    def factor(self, knob: Knob) -> float:
        """`value` of one of `FACTORS`."""
        value = self.value(knob)
        return float(value) if value is not None else 1.0

    def bounded(self, knob: Knob, value: Value) -> Value:
        """`value`, moved into the setting's bounds."""
        if value is None or knob not in FACTORS:
            return value
        low, high = self.bounds(knob)
        return min(max(float(value), low), high)

    def bounds(self, knob: Knob) -> tuple[float, float]:
        """Smallest and largest factor; 1.0 is always between."""
        config = self.config
        if knob is Knob.LR:
            return config.min_lr_factor, max(1.0, self._lr_ceiling() / self.base.lr)
        if knob is Knob.SCENARIOS:
            smallest = max(config.min_scenarios_factor, min(1.0, _LEAST_SCENARIOS / self.base.per_cycle))
            return smallest, config.max_scenarios_factor
        return {Knob.ORPO_WEIGHT: (WEAKEST_ORPO, 1.0), Knob.PROBES: (1.0, MOST_PROBES)}.get(knob, (1.0, 1.0))

    def rests(self, knob: Knob) -> bool:
        """Whether a rule changed it (or advised to) less than `hold_cycles` ago, so that none may change it again."""
        newest = next((d for d in reversed(self.decisions) if d.knob is knob), None)
        return newest is not None and self.cycle_number - newest.cycle_number < self.config.hold_cycles

    def decide(
        self,
        rule: GovernorRule,
        knob: Knob,
        to_value: Value,
        reason: str,
        evidence: Mapping[str, Any],
        *,
        until_cycle: int | None = None,
    ) -> GovernorDecision:
        """A decision for this cycle on; `from_value` is what holds without it."""
        return GovernorDecision(
            cycle_number=self.cycle_number,
            rule=rule,
            knob=knob,
            from_value=self.before(knob),
            to_value=to_value,
            until_cycle=until_cycle,
            reason=reason,
            applied=self.config.mode is GovernorMode.ACT,
            evidence=dict(evidence),
        )

    def before(self, knob: Knob) -> Value:
        """`value`, or the configured value of a setting that is not a factor."""
        configured: dict[Knob, Value] = {
            Knob.OBJECTIVE: str(self.base.objective),
            Knob.GENERAL_FRACTION: self.base.general_fraction,
        }
        value = self.value(knob)
        return configured.get(knob) if value is None else value

    # --- cycles --------------------------------------------------------------------------------------------

    def newest_of(self, *rules: GovernorRule) -> GovernorDecision | None:
        """The newest decision by one of these rules, advice included."""
        return next((d for d in reversed(self.decisions) if d.rule in rules), None)

    def newest_lasting(self, knob: Knob) -> GovernorDecision | None:
        """The newest decision on this setting that holds until changed, advice excluded."""
        return next(
            (d for d in reversed(self.decisions) if d.knob is knob and d.applied and d.until_cycle is None), None
        )

    def promoted(self, since: int = 0) -> list[CycleRecord]:
        """Promoted cycles from number `since` on, after the last rollback: what came before it is another policy."""
        rolled_back = max((r.number for r in self.records if r.outcome is Outcome.ROLLED_BACK), default=0)
        first = max(since, rolled_back + 1)
        return [r for r in self.records if r.outcome is Outcome.PROMOTED and r.number >= first]

    def _is_meant(self, decision: GovernorDecision) -> bool:
        """Whether it was made for what is configured now: it replaced one objective, not that of every later phase."""
        return decision.knob is not Knob.OBJECTIVE or decision.from_value == str(self.base.objective)

    def _is_over(self, decision: GovernorDecision) -> bool:
        return decision.until_cycle is not None and self.cycle_number > decision.until_cycle

    def _lr_ceiling(self) -> float:
        """Highest learning rate that the governor may ask for; the plan's own is never cut by it."""
        if self.value(Knob.OBJECTIVE) is not None:
            return self.base.lr  # another objective's rate is not the plan's: it is not raised at all
        limit = _MAX_REFERENCE_LR if self.base.objective.needs_reference else self.config.max_lr
        return min(limit, self.config.max_lr)


def neutral(knob: Knob) -> Value:
    """The value that changes nothing."""
    return 1.0 if knob in FACTORS else None
