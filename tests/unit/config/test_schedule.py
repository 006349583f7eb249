"""The learning-rate schedule against values derived by hand, and what holds of every plan."""

from __future__ import annotations

from dataclasses import replace
from math import cos, pi
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.schedule import StepPlan, adjusted, learning_rate, plan_step
from daemon.config.sections import PhaseConfig, TrainingConfig
from daemon.domain.records import Adjustments
from daemon.domain.states import Objective


def rates(cycles: int, **training: Any) -> list[float]:
    """The learning rate of cycles 1 to `cycles`."""
    config = TrainingConfig.model_validate(training)
    return [plan_step(config, number).lr for number in range(1, cycles + 1)]


def test_without_a_schedule_it_is_constant() -> None:
    """ORPO at 1e-5, phase 1, from the first cycle on."""
    for number in (1, 2, 1_000_000):
        assert plan_step(TrainingConfig(), number) == StepPlan(1, Objective.ORPO, 1e-5)


def test_warm_up_is_linear() -> None:
    """Three cycles of warm-up: a quarter, half, three quarters, then the whole."""
    assert rates(6, lr=8e-5, warmup_cycles=3) == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 8e-5, 8e-5], rel=1e-15)


def test_the_cosine_by_hand() -> None:
    """Five cycles from 1e-5 to a floor of 2e-6: half of 1 + cos(0, 45, 90, 135, 180 degrees) of the 8e-6."""
    root = 2**-0.5
    halves = [1.0, (1 + root) / 2, 0.5, (1 - root) / 2, 0.0]
    expected = [2e-6 + 8e-6 * half for half in halves]
    found = rates(7, lr=1e-5, schedule="cosine", schedule_cycles=5, final_lr_fraction=0.2)
    assert found == pytest.approx([*expected, 2e-6, 2e-6], rel=1e-14)


def test_the_cosine_starts_after_the_warm_up() -> None:
    """schedule_cycles counts the warm-up: 1 of 4 cycles warms up, the peak is in cycle 2, the floor in cycle 4."""
    found = rates(5, lr=1e-5, schedule="cosine", schedule_cycles=4, warmup_cycles=1, final_lr_fraction=0.0)
    assert found == pytest.approx([5e-6, 1e-5, 5e-6, 0.0, 0.0], abs=1e-20)


def test_phases_follow_each_other_and_the_last_one_holds() -> None:
    """Two cycles of SFT, three of a cosine ORPO, two of a warming DPO whose last value stays."""
    config = TrainingConfig.model_validate(
        {
            "phases": [
                {"objective": "sft", "cycles": 2, "lr": 2e-5},
                {"objective": "orpo", "cycles": 3, "schedule": "cosine", "final_lr_fraction": 0.0},
                {"objective": "dpo", "cycles": 2, "warmup_cycles": 1},
            ]
        }
    )
    found = [plan_step(config, number) for number in range(1, 10)]
    assert [(plan.phase, plan.objective.value) for plan in found] == (
        [(1, "sft")] * 2 + [(2, "orpo")] * 3 + [(3, "dpo")] * 4
    )
    expected = [2e-5, 2e-5, 1e-5, 5e-6, 0.0, 2.5e-7, 5e-7, 5e-7, 5e-7]
    assert [plan.lr for plan in found] == pytest.approx(expected, abs=1e-20)


def test_a_last_phase_that_ends_in_its_cosine_holds_where_it_stopped() -> None:
    """Two cycles of a cosine of three: half way, and there it stays."""
    config = TrainingConfig.model_validate(
        {"phases": [{"objective": "orpo", "cycles": 2, "schedule": "cosine", "schedule_cycles": 3}]}
    )
    assert [plan_step(config, number).lr for number in (2, 3, 9)] == pytest.approx([5.5e-6] * 3, rel=1e-14)


@pytest.mark.parametrize("number", [0, -1])
def test_cycles_are_numbered_from_one(number: int) -> None:
    """There is no cycle 0 to plan."""
    with pytest.raises(ValueError, match="numbered from 1"):
        plan_step(TrainingConfig(), number)


PLAN = StepPlan(2, Objective.ORPO, 8e-5)


def test_without_adjustments_the_plan_stays() -> None:
    """Every default: an equal plan, its rate to the last bit."""
    assert adjusted(PLAN, Adjustments()) == PLAN


@pytest.mark.parametrize(
    ("adjustments", "expected"),
    [
        (Adjustments(lr_factor=0.25), StepPlan(2, Objective.ORPO, 2e-5)),
        (Adjustments(orpo_weight_factor=0.5), StepPlan(2, Objective.ORPO, 8e-5, orpo_weight_factor=0.5)),
        (Adjustments(objective=Objective.DPOP), StepPlan(2, Objective.DPOP, 5e-7)),
        (Adjustments(objective=Objective.DPOP, lr_factor=0.5), StepPlan(2, Objective.DPOP, 2.5e-7)),
        (Adjustments(objective=Objective.SFT, lr_factor=2.0), StepPlan(2, Objective.SFT, 2e-5)),
        (Adjustments(objective=Objective.ORPO, lr_factor=0.5), StepPlan(2, Objective.ORPO, 4e-5)),
        (Adjustments(scenarios_factor=2.0, general_fraction=0.4, favour="arithmetic", probe_factor=2.0), PLAN),
    ],
)
def test_adjustments_by_hand(adjustments: Adjustments, expected: StepPlan) -> None:
    """Factors multiply; another objective has its own default rate, the plan's own keeps the plan's; the rest is not
    the step's."""
    found = adjusted(PLAN, adjustments)
    assert found.lr == pytest.approx(expected.lr, rel=1e-15)
    assert replace(found, lr=0.0) == replace(expected, lr=0.0)


@st.composite
def phases(draw: st.DrawFn, *, last: bool = True) -> PhaseConfig:
    """Any valid phase; without `last` one that ends."""
    warmup = draw(st.integers(0, 20))
    span = warmup + 2 + draw(st.integers(0, 30))
    schedule = draw(st.sampled_from(["constant", "cosine"]))
    cycles = draw(st.integers(warmup + 1, 60) if not last else st.none() | st.integers(warmup + 1, 60))
    return PhaseConfig.model_validate(
        {
            "objective": draw(st.sampled_from(Objective)),
            "cycles": cycles,
            "lr": draw(st.none() | st.floats(1e-12, 10.0)),
            "schedule": schedule,
            "warmup_cycles": warmup,
            "schedule_cycles": span if schedule == "cosine" else None,
            "final_lr_fraction": draw(st.floats(0.0, 1.0)),
        }
    )


@given(phase=phases(), cycle=st.integers(1, 200))
def test_a_rate_is_within_its_phase(phase: PhaseConfig, cycle: int) -> None:
    """Never negative, never above the peak, and after the warm-up never below the floor."""
    rate = learning_rate(phase, cycle)
    assert 0.0 <= rate <= phase.peak_lr
    if cycle > phase.warmup_cycles:
        assert rate >= phase.peak_lr * phase.final_lr_fraction * (1 - 1e-12)


@given(phase=phases())
def test_the_peak_is_reached_and_the_cosine_ends_at_the_floor(phase: PhaseConfig) -> None:
    """Exactly, not nearly."""
    assert learning_rate(phase, phase.warmup_cycles + 1) == phase.peak_lr
    if phase.schedule == "cosine":
        assert phase.schedule_cycles is not None
        for after in (0, 1, 100):
            assert learning_rate(phase, phase.schedule_cycles + after) == phase.peak_lr * phase.final_lr_fraction


@given(phase=phases(), cycle=st.integers(1, 120))
def test_within_a_phase_it_never_jumps(phase: PhaseConfig, cycle: int) -> None:
    """From one cycle to the next at most a warm-up's step, or the steepest step of the cosine, half way down."""
    warm = phase.peak_lr / (phase.warmup_cycles + 1)
    fall = 0.0
    if phase.schedule_cycles is not None:
        width = phase.schedule_cycles - phase.warmup_cycles - 1
        # The chord of a cosine over 1/width of its half period, centred where it is steepest.
        fall = phase.peak_lr * cos(pi / 2 * (1 - 1 / width))
    before, after = learning_rate(phase, cycle), learning_rate(phase, cycle + 1)
    if cycle <= phase.warmup_cycles:
        assert before <= after <= before + warm * (1 + 1e-9)
    else:
        assert before >= after >= before - fall * (1 + 1e-9)


@given(earlier=st.lists(phases(last=False), max_size=3), last=phases(), data=st.data())
def test_a_plan_is_its_phases_one_after_another(
    earlier: list[PhaseConfig], last: PhaseConfig, data: st.DataObject
) -> None:
    """Written out cycle by cycle, the plan is each phase's own schedule, and then the last one's final value."""
    config = TrainingConfig(phases=(*earlier, last), allow_unsafe_lr=True)
    listed = [
        StepPlan(number, phase.objective, learning_rate(phase, cycle))
        for number, phase in enumerate((*earlier, last), start=1)
        for cycle in range(1, (phase.cycles or 70) + 1)
    ]
    number = data.draw(st.integers(1, len(listed)))
    assert plan_step(config, number) == listed[number - 1]
    if last.cycles is not None:
        assert plan_step(config, len(listed) + number) == listed[-1]
