"""The learning-rate schedule: what the training plan says of one cycle, and what adjustments make of it.

Pure functions of the configuration, the cycle's number and its recorded adjustments, so a cycle that is repeated or
resumed gets the same step, and nothing about the schedule is stored beside these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi

from daemon.config.sections import PhaseConfig, TrainingConfig
from daemon.domain.records import Adjustments
from daemon.domain.states import Objective


@dataclass(frozen=True)
class StepPlan:
    """What one cycle's step is to be."""

    phase: int
    """Position in the plan, from 1."""
    objective: Objective
    lr: float
    orpo_weight_factor: float = 1.0
    """On `training.orpo_weight`."""


def plan_step(config: TrainingConfig, cycle_number: int) -> StepPlan:
    """The phase, objective and learning rate of a cycle; phases follow each other, the last one's final value holds.

    Args:
        cycle_number: 1, 2, 3, ... within the run; skipped cycles count.

    Raises:
        ValueError: `cycle_number` is below 1.
    """
    if cycle_number < 1:
        raise ValueError(f"cycles are numbered from 1, not {cycle_number}")
    *earlier, last = config.plan
    remaining = cycle_number
    for number, phase in enumerate(earlier, start=1):
        if phase.cycles is None or remaining <= phase.cycles:
            return StepPlan(number, phase.objective, learning_rate(phase, remaining))
        remaining -= phase.cycles
    within = remaining if last.cycles is None else min(remaining, last.cycles)
    return StepPlan(len(earlier) + 1, last.objective, learning_rate(last, within))


def adjusted(plan: StepPlan, adjustments: Adjustments) -> StepPlan:
    """What the step is to be with the governor's and the breaker's changes; equal to `plan` when there are none.

    Another objective than the plan's comes with its own default learning rate: the plan's was meant for a loss of
    another scale. The plan's own objective keeps the plan's rate.
    """
    objective, lr = plan.objective, plan.lr
    if adjustments.objective is not None and adjustments.objective is not objective:
        objective = adjustments.objective
        lr = PhaseConfig(objective=objective).peak_lr
    return replace(
        plan, objective=objective, lr=lr * adjustments.lr_factor, orpo_weight_factor=adjustments.orpo_weight_factor
    )


def learning_rate(phase: PhaseConfig, cycle: int) -> float:
    """The rate in cycle `cycle` of the phase, from 1: linear warm-up, then constant or half a cosine to the floor.

    Source: the cosine is that of SGDR without restarts (arXiv 1608.03983, equation 5).
    """
    peak = phase.peak_lr
    if cycle <= phase.warmup_cycles:
        return peak * cycle / (phase.warmup_cycles + 1)
    if phase.schedule == "constant" or phase.cosine_cycles is None:
        return peak
    floor = peak * phase.final_lr_fraction
    if cycle >= phase.cosine_cycles:
        return floor
    first = phase.warmup_cycles + 1  # the cycle at the peak
    progress = (cycle - first) / (phase.cosine_cycles - first)
    return peak - (peak - floor) * (1.0 - cos(pi * progress)) / 2.0
