"""The simulation of the watchdog: its runs are what the daemon's would be, and its figures add up."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.watchdog import PROMPTS, Plan, main, simulate
from benchmarks.watchdog_lineage import KEEP_EXACT, Run
from benchmarks.watchdog_report import percentile, poisson_upper_bound, report
from benchmarks.watchdog_studies import (
    NAIVE_RULES,
    NULLS,
    PAIRED_CHANGES,
    PASS_CHANGES,
    NullTally,
    naive_rules,
    simulate_changes,
    simulate_null,
)
from benchmarks.watchdog_world import CAPABILITIES, NO_CHANGE, PASS_PROBES, Change, Setting, World
from daemon.config.sections import CheckpointsConfig
from daemon.config.watching import ProbesConfig, WatchdogConfig
from daemon.domain.probing import CONFIRMATION_SUFFIX
from daemon.domain.states import Decision
from daemon.domain.verdicts import Evidence, History, PassCount, Suspicion, Verdict

CONFIG = WatchdogConfig()
TEN = replace(NULLS[0], behaviour_items=24, capability_items=24, capability_every=3)
"""With sizes that stay when the defaults change: the figures below are worked out by hand."""


class Scripted:
    """A judge that suspects and refuses in given calls, and keeps what it was shown."""

    def __init__(self, suspect_in: int = 0, refuse_in: int = 0, to_version: str = "", eager_at: int = -1) -> None:
        self.shown: list[tuple[History, Evidence]] = []
        self._eager_at = eager_at
        self._suspect_in, self._refuse_in, self._to_version = suspect_in, refuse_in, to_version

    def gate(self, history: History, evidence: Evidence) -> Verdict | None:
        raise AssertionError("judge alone is asked")

    def judge(self, history: History, evidence: Evidence) -> Verdict | Suspicion:
        self.shown.append((history, evidence))
        if len(self.shown) == self._suspect_in:
            return Suspicion(("accept",), "looks worse", 200)
        if len(self.shown) == self._refuse_in:
            return Verdict(Decision.ROLL_BACK, "worse", to_version=self._to_version)
        return Verdict(Decision.PROMOTE, "fine", evidence={"detectors": {"calls": len(self.shown)}})

    def suspects(self, history: History) -> bool:
        return history.parent_anchor.depth == self._eager_at


def scripted_run(judge: Scripted, seed: int = 1, setting: Setting = TEN) -> Run:
    source = np.random.default_rng(seed)
    return Run(World(setting, source), judge, CONFIG, source)


def test_sizes_are_those_that_ship() -> None:
    """A candidate has as many items of each probe, as often, as the configuration's defaults say."""
    shipped, run = ProbesConfig(), scripted_run(Scripted(), setting=NULLS[0])
    cycles = [run.cycle() for _ in range(2 * shipped.capability_every)]
    items = Counter(result.probe for result in cycles[0].candidate.results)
    assert (items["nll"], items["chosen_logp"], items["sycophancy"]) == (
        shipped.nll_documents,
        shipped.answer_items,
        shipped.answer_items,
    )
    asked = {p: [c.candidate.counts[p].num_items for c in cycles if p in c.candidate.counts] for p in PASS_PROBES}
    assert asked["accept"] == asked["push_back"] == [shipped.behaviour_items] * len(cycles)
    assert all(asked[probe] == [shipped.capability_items] * 2 for probe in CAPABILITIES)
    assert CheckpointsConfig().keep_exact == KEEP_EXACT and PROMPTS[0] == shipped.behaviour_items


def test_a_detector_half_way_has_capabilities_asked_in_every_cycle() -> None:
    """Where the judge suspects something all three are asked, of the turn that the cycle has; afterwards when due."""
    run = scripted_run(Scripted(eager_at=5))
    cycles = [run.cycle() for _ in range(9)]
    asked = [sorted(set(cycle.candidate.counts) & set(CAPABILITIES)) for cycle in cycles]
    assert asked[5] == sorted(CAPABILITIES) and all(len(probes) == 1 for probes in asked[:5])
    assert asked[6:] == [[], [], sorted(CAPABILITIES)]
    first = next(result.item for result in cycles[5].candidate.results if result.probe == "code")
    assert first == f"code-{6 * TEN.capability_items:03}"


def test_what_if_is_no_goal() -> None:
    """Runs that are not as the daemon is have no row among the goals, however often they were rolled back."""
    rows = report([NullTally("usual", cycles=10), NullTally("harder", what_if=True, cycles=10)], []).splitlines()
    assert [row.split(": ")[1] for row in rows if "false rollback per 1000" in row] == ["usual | 0.00 | met |"]
    assert "Held to no goal, since the daemon is not like that: harder." in rows
    assert [setting.name for setting in NULLS if setting.what_if] == [s.name for s in NULLS if s.reserve_harder]


def test_a_huge_regression_is_rolled_back_at_once() -> None:
    """Most of accept's answers failing, or NLL up by half a nat: the first candidate is refused, by its rule."""
    changes = (Change("most answers fail", {"accept": 0.8}), Change("NLL jumps", nll_step=0.5))
    tallies = simulate_changes(TEN, changes, CONFIG, seed=3, forks=3)
    assert [tally.delays for tally in tallies] == [[1, 1, 1], [1, 1, 1]]
    assert [dict(tally.rules) for tally in tallies] == [{"pass rate accept": 3}, {"gate nll_rise": 3}]


def test_a_run_without_a_change_is_left_alone() -> None:
    """100 cycles in which nothing goes wrong: 80 past warm-up are counted, none is rolled back."""
    (tally,) = simulate_null(TEN, CONFIG, seed=3, length=100)
    assert (tally.cycles, tally.rollbacks.total()) == (80, 0)


def test_the_report_has_every_row() -> None:
    """Each kind of run, change, naive rule and goal has its row; a change that depends on prompts has two."""
    plan = Plan(cycles=1, times=1, seed=1, config=CONFIG, processes=1, run_length=22)
    nulls, delays = simulate(plan)
    rows = report(nulls, delays).splitlines()
    for setting in NULLS:
        assert sum(row.startswith(f"| {setting.name} |") for row in rows) == 1
    for change, times in (*((c, 2) for c in PASS_CHANGES), *((c, 1) for c in PAIRED_CHANGES)):
        assert sum(row.startswith(f"| {change.name} |") for row in rows) == times
    for rule in NAIVE_RULES:
        assert sum(row.startswith(f"| {rule} |") for row in rows) == 1
    assert sum("false rollback per 1000" in row for row in rows) == sum(not setting.what_if for setting in NULLS)
    assert sum("in 95 %" in row for row in rows) == 3


def test_the_same_seed_gives_the_same_figures() -> None:
    """Everything but the seconds is equal in a second simulation, and not with another seed."""
    first, again, other = (simulate_changes(TEN, PASS_CHANGES[1:2], CONFIG, seed, forks=2)[0] for seed in (5, 5, 6))
    assert (first.delays, first.rules) == (again.delays, again.rules)
    assert first.delays != other.delays


def test_a_setting_that_does_not_exist_is_refused() -> None:
    """`--set` takes keys of [watchdog] only."""
    with pytest.raises(ValueError, match="no_such_key"):
        main(["--quick", "--set", "no_such_key=1"])


@pytest.mark.parametrize(("found", "bound"), [(0, 2.9957), (1, 4.7439), (5, 10.5130)])
def test_upper_bound_is_the_tables(found: int, bound: float) -> None:
    """One-sided 95 % bounds of a Poisson mean, as tables have them; for none it is -ln 0.05."""
    assert poisson_upper_bound(found) == pytest.approx(bound, abs=5e-4)


def test_percentiles_count_what_was_never_found() -> None:
    """Of 20 delays the 19th is the 95th percentile; two that were never found make it infinite."""
    assert percentile([*range(1, 20), None], 0.95) == 19
    assert percentile([*range(1, 19), None, None], 0.95) == math.inf
    assert percentile([3, 1, 2], 0.5) == 2


def test_failures_come_at_the_rate_that_was_asked_for() -> None:
    """Over many worlds 10 % of the answers fail, 20 % after a change to 20 %, in pool and reserve; items differ."""
    change, source = Change("worse", {"accept": 0.2}), np.random.default_rng(1)
    worlds = [World(TEN, source) for _ in range(30)]
    for planted, rate in ((NO_CHANGE, 0.1), (change, 0.2)):
        for fresh in (False, True):
            answers = [a for w in worlds for a in w.answers("accept", 0, 400, source, planted, fresh=fresh)]
            failed = sum(answer.passed is False for answer in answers) / len(answers)
            assert failed == pytest.approx(rate, abs=0.012)
    twice = [[a.passed for a in worlds[0].answers("accept", 0, 400, source, NO_CHANGE)] for _ in range(2)]
    both = sum(not one and not two for one, two in zip(*twice, strict=True))
    assert both > 8  # items alike would fail twice in 4 of 400


def test_a_harder_reserve_leaves_the_pool_as_it_is() -> None:
    """With a reserve 5 points harder, 10 % of the pool's answers fail and 15 % of the reserve's."""
    source = np.random.default_rng(2)
    worlds = [World(replace(TEN, reserve_harder=0.05), source) for _ in range(30)]
    for fresh, rate in ((False, 0.1), (True, 0.15)):
        answers = [a for w in worlds for a in w.answers("code", 0, 400, source, NO_CHANGE, fresh=fresh)]
        assert sum(answer.passed is False for answer in answers) / len(answers) == pytest.approx(rate, abs=0.012)


def test_confirmations_are_asked_of_other_prompts() -> None:
    """On a suspicion the judge is asked again, with 200 results under the confirmation's name, none of the pool."""
    judge = Scripted(suspect_in=3)
    run = scripted_run(judge)
    cycles = [run.cycle() for _ in range(4)]
    assert [cycle.suspected for cycle in cycles] == [(), (), ("accept",), ()]
    (before, first), (again, second) = judge.shown[2:4]
    added = second.results[len(first.results) :]
    assert before is again and second.results[: len(first.results)] == first.results
    assert {result.probe for result in added} == {"accept" + CONFIRMATION_SUFFIX} and len(added) == 200
    pool = {result.item for result in run._world.answers("accept", 0, 400, run._source, NO_CHANGE)}
    assert not pool & {result.item for result in added}


def test_history_is_what_storage_would_give() -> None:
    """After 35 promotions: A1 is 20, 400 of its pooled items are of cycles 20 to 4, the base has 400 of its own."""
    judge = Scripted()
    run = scripted_run(judge)
    cycles = [run.cycle() for _ in range(36)]
    history = judge.shown[-1][0]
    assert history.baked == cycles[19].candidate.results and history.parent == cycles[34].candidate.results
    assert [anchor.depth for anchor in history.anchors] == [20, 10, 0]
    counted = [cycle.candidate.counts["accept"] for cycle in cycles[3:20]]  # 17 cycles of 24 are 408
    pooled = PassCount(sum(c.failures for c in counted), sum(c.num_items for c in counted))
    assert history.references["accept"]["baked"] == pooled and pooled.num_items == 408
    assert history.references["accept"]["base"].num_items == 400
    assert "baked" not in history.references["arithmetic"]  # 24 every third cycle are 160 only
    assert len(history.chosen_logp) == 36 and len(history.update_rms_over_lr) == 20
    assert history.detectors == {"calls": 35}


def test_capabilities_take_turns() -> None:
    """Behaviour is measured in every cycle, each capability in every third, one of them at a time."""
    run = scripted_run(Scripted())
    measured = [set(run.cycle().candidate.counts) - {"accept", "push_back"} for _ in range(6)]
    assert all(len(probes) == 1 for probes in measured)
    assert measured[:3] == measured[3:] and set.union(*measured) == set(PASS_PROBES[2:])


def test_a_rollback_moves_the_head_and_empties_the_detectors() -> None:
    """The next candidate's parent is the checkpoint that the verdict names, and nothing after it is left."""
    judge = Scripted(refuse_in=15, to_version="cycle-000010")
    run = scripted_run(judge)
    cycles = [run.cycle() for _ in range(16)]
    after = judge.shown[-1][0]
    assert cycles[14].verdict.regressed and cycles[15].depth == 10
    assert after.parent == cycles[9].candidate.results and after.parent_anchor.version == "cycle-000010"
    assert after.detectors == {} and judge.shown[13][0].detectors == {"calls": 13}


def test_a_fork_leaves_its_run_alone() -> None:
    """A change in a fork is seen there from the next step on, and never in the run it came from."""
    run = scripted_run(Scripted())
    for _ in range(5):
        run.cycle()
    branch = run.fork(np.random.default_rng(9), Change("jump", nll_step=1.0))
    branched = branch.cycle().candidate
    assert run.depth == 5 and branch.depth == 6
    assert branched.changed_steps == 1 and run.cycle().candidate.changed_steps == 0


def test_naive_rules_are_what_they_say() -> None:
    """One cycle, by hand: 5 of 24 against 40 of 400 is more than 5 points, and with z = 1.68 beyond 1.645."""
    run = scripted_run(Scripted())
    run.cycle()
    cycle = next(c for c in (run.cycle() for _ in range(400)) if c.candidate.counts["accept"].failures == 5)
    base = dict.fromkeys(PASS_PROBES, PassCount(400, 400)) | {"accept": PassCount(40, 400)}
    found = naive_rules(cycle, base)
    assert NAIVE_RULES[0] in found and NAIVE_RULES[2] in found
    assert naive_rules(cycle, dict.fromkeys(PASS_PROBES, PassCount(400, 400)))[:1] != [NAIVE_RULES[0]]
