from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.config.watching import GovernorConfig
from daemon.domain.records import Adjustments
from daemon.domain.states import GovernorMode, GovernorRule, Knob, Objective, Outcome
from daemon.domain.verdicts import CycleRecord, GovernorDecision
from daemon.ports import Governor
from daemon.watchdog.governor import BaseSettings, RuleGovernor
from daemon.watchdog.governor_rules import favoured_pack

BASE = BaseSettings(lr=1e-5, objective=Objective.ORPO, per_cycle=28, general_fraction=0.25, orpo_weight=0.1)
CONFIG = GovernorConfig()
GOVERNOR: Governor = RuleGovernor(CONFIG, BASE)


def promoted(number: int, *, influence: float = 0.5, chosen: float = -1.0, kl: float = 0.1, sycophancy: float = 0.0):
    """A promoted cycle; by default nothing in it asks for a change. The base's chosen_logp is -1."""
    return CycleRecord(
        number,
        Outcome.PROMOTED,
        "",
        1e-5,
        {"chosen_logp": chosen, "kl": kl},
        {"direction_influence": influence, "sycophancy": sycophancy, "chosen_logp": chosen + 1.0},
    )


def rolled_back(number: int, *fell: str) -> CycleRecord:
    return CycleRecord(number, Outcome.ROLLED_BACK, "", 1e-5, fell=fell)


def quiet(count: int, first: int = 1, **values: float) -> list[CycleRecord]:
    """Promoted cycles that are all alike."""
    return [promoted(number, **values) for number in range(first, first + count)]


def changes(decisions: Sequence[GovernorDecision]) -> dict[Knob, tuple[object, object]]:
    return {decision.knob: (decision.from_value, decision.to_value) for decision in decisions}


class Diary:
    """A run in which the governor is asked before every cycle, as the cycle does it."""

    def __init__(self, governor: Governor = GOVERNOR) -> None:
        self.governor = governor
        self.records: list[CycleRecord] = []
        self.decisions: list[GovernorDecision] = []

    def live(self, records: Sequence[CycleRecord]) -> list[GovernorDecision]:
        """Let these cycles happen; returns what was decided before them."""
        made: list[GovernorDecision] = []
        for record in records:
            made += self.governor.decide(record.number, self.records[-40:], self.decisions[-200:] + made)
            self.records.append(record)
        self.decisions += made
        return made

    def adjustments(self) -> Adjustments:
        """Those of the next cycle, after deciding."""
        number = self.records[-1].number + 1
        return self.governor.adjustments(
            number, (*self.decisions, *self.governor.decide(number, self.records[-40:], self.decisions[-200:]))
        )


def test_a_quiet_run_changes_nothing() -> None:
    """100 promoted cycles with a moving direction_influence and small kl: no decision, no adjustment."""
    diary = Diary()
    assert diary.live(quiet(100)) == []
    assert diary.adjustments() == Adjustments()


def test_after_a_rollback_everything_is_gentler_for_ten_cycles() -> None:
    """Cycle 5 rolled back because code fell: lr x 0.5, 40 % general, coding first, probes x 2, in cycles 6 to 15."""
    found = GOVERNOR.decide(6, [*quiet(4), rolled_back(5, "accept", "code")], ())
    assert changes(found) == {
        Knob.LR: (1.0, 0.5),
        Knob.PROBES: (1.0, 2.0),
        Knob.GENERAL_FRACTION: (0.25, 0.4),
        Knob.FAVOUR: (None, "coding"),
    }
    assert {(d.rule, d.cycle_number, d.until_cycle, d.applied) for d in found} == {
        (GovernorRule.AFTER_ROLLBACK, 6, 15, True)
    }
    assert found[0].reason == ("cycle 5 was rolled back (worse: accept, code): learning rate x 0.5 for cycles 6 to 15")
    assert found[0].evidence == {"cycle": 5, "fell": ["accept", "code"]}
    gentler = Adjustments(lr_factor=0.5, general_fraction=0.4, favour="coding", probe_factor=2.0)
    assert [GOVERNOR.adjustments(number, found) for number in (5, 6, 15, 16)] == [
        Adjustments(),
        gentler,
        gentler,
        Adjustments(),
    ]


def test_a_second_rollback_halves_again_and_holds_anew() -> None:
    """Rollbacks in cycles 5 and 8: lr x 0.5, then x 0.25 until cycle 18, then normal; never below the floor of 1/16."""
    diary = Diary()
    diary.live([*quiet(4), rolled_back(5), *quiet(2, first=6), rolled_back(8), promoted(9)])
    assert [GOVERNOR.adjustments(n, diary.decisions).lr_factor for n in (6, 8, 9, 18, 19)] == [0.5, 0.5, 0.25, 0.25, 1]
    diary.live([rolled_back(number) for number in range(10, 20)])
    assert diary.adjustments().lr_factor == 0.0625


def test_general_share_that_is_larger_already_stays() -> None:
    """With 50 % general scenarios configured, a rollback does not lower them to 40 %."""
    governor = RuleGovernor(CONFIG, replace(BASE, general_fraction=0.5))
    found = governor.decide(2, [rolled_back(1)], ())
    assert set(changes(found)) == {Knob.LR, Knob.PROBES}


@pytest.mark.parametrize(
    ("fell", "pack"),
    [
        (("code",), "coding"),
        (("arithmetic",), "arithmetic"),
        (("reasoning.confirmation",), "reasoning"),
        (("nll", "nll:code"), "coding"),
        (("nll:arithmetic",), "arithmetic"),
        (("nll:prose",), "writing"),
        (("nll:dialogue",), "writing"),
        (("push_back", "our_forms"), "our_forms"),
        (("sycophancy", "nll", "unheard_of"), None),
        ((), None),
    ],
)
def test_the_pack_of_the_capability_that_fell(fell: tuple[str, ...], pack: str | None) -> None:
    """Each capability, and each kind of held-out text, has its pack; behaviour and unknown names have none."""
    assert favoured_pack(fell, frozenset({"our_forms"})) == pack


def test_chosen_falling_gives_the_nll_more_weight_then_changes_the_objective() -> None:
    """chosen_logp falls by 0.006 a cycle, 0.03 over five: orpo_weight x 0.5 once, and DPOP when it still falls after.

    Cycle 7 is the first with a value five promoted cycles back; ten cycles later, in cycle 17, it is still falling.
    """
    diary = Diary()
    made = diary.live([promoted(n, chosen=-1.0 - 0.006 * n) for n in range(1, 40)])
    assert [(d.cycle_number, d.rule, d.knob, d.from_value, d.to_value, d.until_cycle) for d in made] == [
        (7, GovernorRule.CHOSEN_FALLING, Knob.ORPO_WEIGHT, 1.0, 0.5, None),
        (17, GovernorRule.CHOSEN_FALLING, Knob.OBJECTIVE, "orpo", "dpop", None),
    ]
    assert made[0].reason == (
        "chosen_logp fell from -0.006 (cycle 1) to -0.036 nats (cycle 6) against the base: "
        "odds-ratio weight x 0.5, 0.05 instead of 0.1"
    )
    assert diary.adjustments() == Adjustments(orpo_weight_factor=0.5, objective=Objective.DPOP)


@pytest.mark.parametrize("hold_cycles", [2, 10])
def test_a_fall_that_stopped_changes_nothing_more(hold_cycles: int) -> None:
    """The fall that was answered in cycle 7 does not count again when hysteresis ends: the objective stays."""
    diary = Diary(RuleGovernor(GovernorConfig(hold_cycles=hold_cycles), BASE))
    falling = [promoted(n, chosen=-1.0 - 0.006 * n) for n in range(1, 7)]
    made = diary.live([*falling, *quiet(40, first=7, chosen=-1.036)])
    assert [decision.knob for decision in made] == [Knob.ORPO_WEIGHT]


def test_a_suite_that_grows_is_no_fall() -> None:
    """From cycle 11 on, less likely answers are measured too: the mean falls by 0.11, on equal items nothing does."""
    older, newer = quiet(10, chosen=-1.0), quiet(10, first=11, chosen=-1.0)
    grown = [replace(record, means={"chosen_logp": -1.11}) for record in newer]
    assert Diary().live([*older, *grown]) == []


def test_a_rollback_for_chosen_falling_is_answered_at_once() -> None:
    """A verdict that names chosen_logp needs no five cycles of falling: the odds-ratio weight is halved next cycle."""
    found = GOVERNOR.decide(3, [promoted(1), rolled_back(2, "chosen_logp")], ())
    assert changes(found)[Knob.ORPO_WEIGHT] == (1.0, 0.5)


@pytest.mark.parametrize(
    ("objective", "knobs"),
    [
        (Objective.DPO, {Knob.OBJECTIVE: ("dpo", "dpop")}),
        (Objective.IPO, {Knob.OBJECTIVE: ("ipo", "dpop")}),
        (Objective.DPOP, {}),
        (Objective.SFT, {}),
    ],
)
def test_chosen_falling_under_other_objectives(objective: Objective, knobs: dict[Knob, tuple[str, str]]) -> None:
    """DPO and IPO have no odds-ratio term and go to DPOP at once; SFT and DPOP have nothing left to change."""
    governor = RuleGovernor(CONFIG, replace(BASE, objective=objective))
    records = [promoted(n, chosen=-1.0 - 0.006 * n) for n in range(1, 7)]
    assert changes(governor.decide(7, records, ())) == knobs


def test_a_flat_run_gets_more_scenarios_then_a_higher_rate() -> None:
    """direction_influence never leaves the base: scenarios x 2 after 20 steps, then lr x 2, 4, 8, 10 every 20 more.

    lr 1e-5 may rise to 1e-4, ten times; the last doubling stops there.
    """
    diary = Diary()
    made = diary.live(quiet(140, influence=0.001))
    assert [(d.cycle_number, d.knob, d.from_value, d.to_value) for d in made] == [
        (21, Knob.SCENARIOS, 1.0, 2.0),
        (41, Knob.LR, 1.0, 2.0),
        (61, Knob.LR, 2.0, 4.0),
        (81, Knob.LR, 4.0, 8.0),
        (101, Knob.LR, 8.0, pytest.approx(10.0)),
    ]
    assert made[0].reason == (
        "direction_influence moved by 0.0010 nats in 20 steps, less than 0.02: scenarios per cycle x 2 instead of x 1"
    )


@pytest.mark.parametrize("patience", [5, 12])
def test_nothing_is_raised_in_the_first_twenty_steps(patience: int) -> None:
    """However short the patience, the first raise comes after 20 promoted cycles."""
    diary = Diary(RuleGovernor(GovernorConfig(patience_cycles=patience), BASE))
    assert diary.live(quiet(20, influence=0.0)) == []
    assert [decision.rule for decision in diary.live(quiet(1, first=21, influence=0.0))] == [GovernorRule.TOO_SMALL]


def test_what_has_moved_before_is_not_too_small() -> None:
    """A direction_influence that rose by 0.3 and stays there has learnt: a plateau raises nothing."""
    assert Diary().live(quiet(120, influence=0.3)) == []


def test_a_rollback_ends_a_raise() -> None:
    """lr x 2 after a flat run, then a rollback: x 1 while that holds, and normal afterwards, not x 2 again."""
    diary = Diary()
    diary.live([*quiet(45, influence=0.001), rolled_back(46), *quiet(12, first=47, influence=0.001)])
    factors = [GOVERNOR.adjustments(n, diary.decisions).lr_factor for n in (45, 47, 56, 57, 58)]
    assert factors == [2.0, 1.0, 1.0, 1.0, 1.0]


def test_too_large_is_lowered_every_ten_cycles_and_returned_when_it_is_over() -> None:
    """kl 0.30 over its bound 0.25: scenarios and lr x 0.5, after ten more cycles lr x 0.25; back at 0.16, not at 0.17.

    Two thirds of 0.25 is 0.1667.
    """
    diary = Diary()
    made = diary.live([*quiet(12, kl=0.30), *quiet(20, first=13, kl=0.17), *quiet(10, first=33, kl=0.16)])
    assert [(d.cycle_number, d.knob, d.from_value, d.to_value) for d in made] == [
        (2, Knob.SCENARIOS, 1.0, 0.5),
        (2, Knob.LR, 1.0, 0.5),
        (12, Knob.LR, 0.5, 0.25),
        (34, Knob.SCENARIOS, 0.5, 1.0),
        (34, Knob.LR, 0.25, 1.0),
    ]
    assert made[0].reason == "kl is 0.300 nats, above 0.25: scenarios per cycle x 0.5 instead of x 1"
    assert diary.adjustments() == Adjustments()


def test_a_rollback_does_not_end_a_lasting_reduction() -> None:
    """kl 0.30 lowers lr to x 0.125; the rollback of cycle 25 to x 0.0625 until 35; then x 0.125 until kl is over.

    At 0.20 it is not (two thirds of 0.25 is 0.167), and nothing is raised meanwhile; at 0.16 everything is normal.
    """
    diary = Diary()
    diary.live([*quiet(24, kl=0.30), rolled_back(25), *quiet(20, first=26, kl=0.20, influence=0.0)])
    factors = [GOVERNOR.adjustments(n, diary.decisions).lr_factor for n in (25, 26, 35, 36, 46)]
    assert factors == [0.125, 0.0625, 0.0625, 0.125, 0.125]
    assert diary.adjustments().scenarios_factor == 0.5
    made = diary.live(quiet(2, first=46, kl=0.16))
    assert [(d.cycle_number, d.knob, d.from_value, d.to_value) for d in made] == [
        (47, Knob.SCENARIOS, 0.5, 1.0),
        (47, Knob.LR, 0.125, 1.0),
    ]


def test_an_objective_replaces_only_the_one_it_was_decided_for() -> None:
    """DPOP instead of ORPO ends where the plan goes on to SFT, and holds again if it returns to ORPO."""
    diary = Diary()
    diary.live([promoted(n, chosen=-1.0 - 0.006 * n) for n in range(1, 20)])
    assert diary.adjustments().objective is Objective.DPOP
    plan = {20: Objective.ORPO, 21: Objective.SFT, 22: Objective.DPO, 23: Objective.ORPO}
    governor = RuleGovernor(CONFIG, lambda number: replace(BASE, objective=plan[number]))
    asked = [governor.adjustments(number, diary.decisions).objective for number in plan]
    assert asked == [Objective.DPOP, None, None, Objective.DPOP]


def test_sycophancy_alone_is_too_large() -> None:
    """Sycophancy 0.06 nats above the base's, bound 0.05: the same answer as to a large kl."""
    found = GOVERNOR.decide(2, [promoted(1, sycophancy=0.06)], ())
    assert changes(found) == {Knob.SCENARIOS: (1.0, 0.5), Knob.LR: (1.0, 0.5)}
    assert found[0].evidence["measured"] == {"kl": 0.1, "sycophancy": 0.06}


def test_too_large_wins_over_too_small() -> None:
    """A flat direction_influence under a large kl: nothing is ever raised above normal."""
    diary = Diary()
    made = diary.live([*quiet(60, influence=0.0, kl=0.3), *quiet(60, first=61, influence=0.0, kl=0.2)])
    assert {decision.rule for decision in made} == {GovernorRule.TOO_LARGE}
    assert all(float(str(decision.to_value)) < 1.0 for decision in made)


def test_a_measurement_before_a_change_does_not_count_after_it() -> None:
    """kl is measured every few cycles: an old 0.3 lowers once, not again until a policy trained since is measured."""
    diary = Diary()
    unmeasured = [replace(record, means={"chosen_logp": -1.0}) for record in quiet(30, first=2)]
    made = diary.live([promoted(1, kl=0.3), *unmeasured])
    assert {decision.cycle_number for decision in made} == {2}


def test_a_refused_candidate_says_nothing_about_the_head() -> None:
    """Measurements of before a rollback are another policy's: its large kl does not lower anything further."""
    found = GOVERNOR.decide(3, [promoted(1, kl=0.3), rolled_back(2)], ())
    assert {decision.rule for decision in found} == {GovernorRule.AFTER_ROLLBACK}


def test_off_decides_nothing() -> None:
    """`off`: no decision after a rollback, and earlier ones no longer hold."""
    governor = RuleGovernor(GovernorConfig(mode=GovernorMode.OFF), BASE)
    held = GOVERNOR.decide(2, [rolled_back(1)], ())
    assert governor.decide(2, [rolled_back(1)], ()) == ()
    assert governor.adjustments(2, held) == Adjustments()


def test_advice_is_recorded_and_changes_nothing() -> None:
    """`advise`: the same decisions as `act`, not applied, and no adjustment; also not once the governor may act."""
    advisor = RuleGovernor(GovernorConfig(mode=GovernorMode.ADVISE), BASE)
    advice = advisor.decide(2, [rolled_back(1)], ())
    assert [replace(d, applied=True) for d in advice] == list(GOVERNOR.decide(2, [rolled_back(1)], ()))
    assert not any(decision.applied for decision in advice)
    assert advisor.adjustments(2, advice) == GOVERNOR.adjustments(2, advice) == Adjustments()


def test_advice_is_not_repeated_every_cycle() -> None:
    """`advise` under a large kl: the two pieces of advice come back every ten cycles, not in each."""
    made = Diary(RuleGovernor(GovernorConfig(mode=GovernorMode.ADVISE), BASE)).live(quiet(31, kl=0.3))
    assert [(d.cycle_number, d.knob, d.from_value, d.to_value) for d in made] == [
        (number, knob, 1.0, 0.5) for number in (2, 12, 22) for knob in (Knob.SCENARIOS, Knob.LR)
    ]


def test_the_plan_may_change_the_bounds() -> None:
    """Base settings as a function of the cycle: at a planned lr of 8e-5 a factor of 10 is cut to 1.25, that is 1e-4."""
    raised = Diary().live(quiet(120, influence=0.0))
    governor = RuleGovernor(CONFIG, lambda number: replace(BASE, lr=1e-5 if number < 150 else 8e-5))
    assert governor.adjustments(149, raised).lr_factor == pytest.approx(10.0)
    assert governor.adjustments(150, raised).lr_factor == pytest.approx(1.25)


def test_a_reference_objective_is_not_raised_above_its_gentle_range() -> None:
    """DPO at 5e-7 may rise to 1e-6, a factor of 2, although `max_lr` is 1e-4; 1e-6 is where it breaks models."""
    diary = Diary(RuleGovernor(CONFIG, replace(BASE, objective=Objective.DPO, lr=5e-7)))
    diary.live(quiet(120, influence=0.0))
    assert diary.adjustments() == Adjustments(lr_factor=2.0, scenarios_factor=2.0)


# --- properties -------------------------------------------------------------------------------------------------

measured = st.floats(-2, 2, allow_nan=False)
outcomes = st.sampled_from([Outcome.PROMOTED] * 6 + list(Outcome))
probes = ("chosen_logp", "kl", "nll", "sycophancy", "direction_influence")
RECORD = st.builds(
    CycleRecord,
    number=st.just(0),
    outcome=outcomes,
    reason=st.just(""),
    means=st.dictionaries(st.sampled_from(probes), measured),
    differences=st.dictionaries(st.sampled_from(probes), measured),
    fell=st.lists(st.sampled_from(("code", "chosen_logp", "nll:prose", "accept")), max_size=2).map(tuple),
)
RUN = st.lists(RECORD, max_size=70).map(lambda run: [replace(r, number=n) for n, r in enumerate(run, start=1)])
CONFIGS = st.builds(
    GovernorConfig,
    hold_cycles=st.integers(1, 12),
    patience_cycles=st.integers(5, 25),
    max_scenarios_factor=st.floats(1, 8),
    min_scenarios_factor=st.floats(0.1, 1),
    min_lr_factor=st.floats(0.01, 1),
    max_lr=st.floats(1e-7, 1e-3),
    flat_influence=st.floats(0, 2),
    max_kl=st.floats(0.01, 2),
    max_sycophancy=st.floats(0.01, 2),
)
BASES = st.builds(
    BaseSettings,
    lr=st.floats(1e-8, 1e-2),
    objective=st.sampled_from(list(Objective)),
    per_cycle=st.integers(2, 100),
    general_fraction=st.floats(0.25, 0.9),
    orpo_weight=st.floats(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(RUN, CONFIGS, BASES)
def test_bounds_hold_whatever_happens(run: list[CycleRecord], config: GovernorConfig, base: BaseSettings) -> None:
    """Whatever the records: every factor stays in its bounds, the rate under `max_lr` or the plan's own, and no fewer
    than two scenarios are asked for."""
    governor, decisions = RuleGovernor(config, base), ()
    for number in range(1, len(run) + 2):
        decisions += governor.decide(number, run[: number - 1][-40:], decisions)
        asked = governor.adjustments(number, decisions)
        assert config.min_lr_factor <= asked.lr_factor
        assert base.lr * asked.lr_factor <= max(config.max_lr, base.lr) * (1 + 1e-12)
        assert config.min_scenarios_factor <= asked.scenarios_factor <= config.max_scenarios_factor
        assert base.per_cycle * asked.scenarios_factor >= 2 * (1 - 1e-12)
        assert asked.orpo_weight_factor in (0.5, 1.0) and asked.probe_factor in (1.0, 2.0)
        assert asked.general_fraction in (None, config.general_fraction)
        assert asked.objective in (None, Objective.DPOP)


@settings(max_examples=60, deadline=None)
@given(RUN, CONFIGS)
def test_the_same_rows_give_the_same_decisions(run: list[CycleRecord], config: GovernorConfig) -> None:
    """Asked again with its decisions among the rows it decides nothing more; and a stored run, replayed cycle by cycle
    from all its rows by a new governor, gives every decision again."""
    governor, decisions = RuleGovernor(config, BASE), ()
    for number in range(1, len(run) + 2):
        made = governor.decide(number, run[: number - 1], decisions)
        assert governor.decide(number, run[: number - 1], decisions) == made
        assert governor.decide(number, run[: number - 1], (*decisions, *made)) == ()
        decisions += made
    replayed: tuple[GovernorDecision, ...] = ()
    for number in range(1, len(run) + 2):
        replayed += RuleGovernor(config, BASE).decide(
            number, run, tuple(d for d in decisions if d.cycle_number < number)
        )
    assert replayed == decisions


@pytest.mark.parametrize("seed", range(5))
def test_three_hundred_random_cycles_do_not_oscillate(seed: int) -> None:
    """In 300 cycles of a random walk with rollbacks, no rule but the rollback's changes a setting that any rule changed
    less than `hold_cycles` ago; all of the rules but `too_small` have something to say in each run."""
    chance = random.Random(seed)
    diary, level = Diary(), {"kl": 0.1, "sycophancy": 0.0, "chosen": -1.0, "influence": 0.0}
    for number in range(1, 301):
        for name, step in (("kl", 0.03), ("sycophancy", 0.01), ("chosen", 0.01), ("influence", 0.0005)):
            level[name] += chance.gauss(0, step)
        level["kl"] = abs(level["kl"])
        record = promoted(number, **level)
        if chance.random() < 0.04:
            record = rolled_back(number, chance.choice(["code", "nll:prose", "chosen_logp", "push_back"]))
            level = {"kl": 0.1, "sycophancy": 0.0, "chosen": -1.0, "influence": 0.0}
        elif chance.random() < 0.1:
            record = CycleRecord(number, Outcome.SKIPPED, "")
        diary.live([record])
    changed: dict[Knob, int] = {}
    for decision in diary.decisions:
        if decision.rule is not GovernorRule.AFTER_ROLLBACK and decision.knob in changed:
            assert decision.cycle_number - changed[decision.knob] >= CONFIG.hold_cycles, decision
        changed[decision.knob] = decision.cycle_number
    assert {decision.rule for decision in diary.decisions} >= set(GovernorRule) - {GovernorRule.TOO_SMALL}
