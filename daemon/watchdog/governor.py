"""The governor: changes a few settings, within bounds, for reasons that are recorded.

The newest decision on a setting holds, to its last cycle; then the setting is normal again, or as low as a lasting
decision before it says. No rule changes a
setting twice within `hold_cycles`, except after a rollback. docs/governor.md lists rules and bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daemon.config.watching import GovernorConfig
from daemon.domain.records import Adjustments
from daemon.domain.states import GovernorMode, Knob, Objective
from daemon.domain.verdicts import CycleRecord, GovernorDecision
from daemon.watchdog import governor_rules as rules
from daemon.watchdog.governor_situation import BaseSettings, Situation

__all__ = ["BaseSettings", "RuleGovernor"]


class RuleGovernor:
    """Implements `ports.Governor`: rows in, decisions out."""

    def __init__(self, config: GovernorConfig, base: BaseSettings | Callable[[int], BaseSettings]) -> None:
        """Govern a run.

        Args:
            base: the configured settings; a function of the cycle's number where the training plan changes them.
        """
        self._config = config
        self._base = base

    def decide(
        self, cycle_number: int, records: Sequence[CycleRecord], decisions: Sequence[GovernorDecision]
    ) -> tuple[GovernorDecision, ...]:
        """New decisions before cycle `cycle_number`; none when asked again with these among `decisions`.

        Of opposite rules the careful one wins: nothing is raised while a change is too large, or held down for that.

        Args:
            records: finished cycles, oldest first; those from `cycle_number` on are ignored.
            decisions: earlier decisions, oldest first; those for later cycles are ignored.
        """
        if self._config.mode is GovernorMode.OFF:
            return ()
        now = self._situation(cycle_number, decisions, records)
        found = rules.after_rollback(now)
        # What is decided now counts at once: a later rule sees a setting that a rollback just changed as resting.
        now = self._situation(cycle_number, (*decisions, *found), records)
        found += rules.chosen_falling(now)
        found += rules.too_large(now)
        if not rules.is_near_too_large(now):
            found += rules.too_small(now)
        return tuple(found)

    def adjustments(self, cycle_number: int, decisions: Sequence[GovernorDecision]) -> Adjustments:
        """What holds in a cycle, within bounds; nothing unless the governor acts."""
        now = self._situation(cycle_number, decisions)
        objective, general, favour = (now.value(knob) for knob in (Knob.OBJECTIVE, Knob.GENERAL_FRACTION, Knob.FAVOUR))
        return Adjustments(
            lr_factor=now.factor(Knob.LR),
            orpo_weight_factor=now.factor(Knob.ORPO_WEIGHT),
            objective=None if objective is None else Objective(str(objective)),
            scenarios_factor=now.factor(Knob.SCENARIOS),
            general_fraction=None if general is None else float(general),
            favour=None if favour is None else str(favour),
            probe_factor=now.factor(Knob.PROBES),
        )

    def _situation(
        self, cycle_number: int, decisions: Sequence[GovernorDecision], records: Sequence[CycleRecord] = ()
    ) -> Situation:
        return Situation(
            self._config,
            self._base if isinstance(self._base, BaseSettings) else self._base(cycle_number),
            cycle_number,
            [record for record in records if record.number < cycle_number],
            [decision for decision in decisions if decision.cycle_number <= cycle_number],
        )
