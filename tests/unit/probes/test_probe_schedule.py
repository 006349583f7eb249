"""The schedule of probes: the core always, the rest in turn within the budget, nothing starves."""

from __future__ import annotations

from collections import Counter

import pytest

from daemon.config.watching import ProbesConfig
from daemon.domain.errors import PackError
from daemon.domain.probing import ProbeBudget, ProbeRequest
from daemon.domain.records import Adjustments
from daemon.domain.states import ProbeReason
from daemon.probes import names
from daemon.probes.schedule import anchor_plan, plan

CONFIG = ProbesConfig()
TASKS = ("arithmetic", "code", "reasoning")
CORE = [*names.CORE_TRAINER, *names.CORE_ENGINE]
EVERYTHING = [*CORE, names.DIRECTION_INFLUENCE, *TASKS, *names.INTERNALS]


def planned(
    cycle: int,
    budget: ProbeBudget,
    *,
    config: ProbesConfig = CONFIG,
    factor: float = 1.0,
    eager: bool = False,
) -> tuple[ProbeRequest, ...]:
    return plan(cycle, budget, config, Adjustments(probe_factor=factor), eager, TASKS)


def optional(requests: tuple[ProbeRequest, ...]) -> list[str]:
    return [request.probe for request in requests if request.reason is not ProbeReason.CORE]


def costs(each: float, **others: float) -> dict[str, float]:
    return {**dict.fromkeys(EVERYTHING, each), **others}


def test_the_core_is_always_measured() -> None:
    """Whatever it costs; the pools go on by one turn a cycle, fixed items have turn 0."""
    requests = planned(7, ProbeBudget(costs(1000.0), dict.fromkeys(EVERYTHING, 6), 1.0))
    assert [(r.probe, r.turn) for r in requests] == [
        ("nll", 0),
        ("chosen_logp", 0),
        ("sycophancy", 0),
        ("accept", 6),
        ("push_back", 6),
    ]
    assert {request.reason for request in requests} == {ProbeReason.CORE}


def test_the_first_cycles_take_one_of_unknown_cost() -> None:
    """Nothing is known: the most overdue one; with all of the time for probes, everything that is due."""
    assert optional(planned(1, ProbeBudget())) == ["direction_influence"]
    # Overdue at cycle 15: direction_influence 15 intervals, each capability 5, each of the internals 3.
    assert optional(planned(15, ProbeBudget())) == ["direction_influence"]
    assert len(optional(planned(15, ProbeBudget(), factor=4.0))) == 7


def test_an_unknown_cost_counts_like_the_dearest_of_the_core() -> None:
    """90 s leave 30 for probes, 21 of them for the core; 8 s are known to be needed, so an unknown one has to wait."""
    seconds = {**dict.fromkeys(CORE, 4.0), "nll": 5.0, "direction_influence": 5.0}
    last = dict.fromkeys(CORE, 14) | {"direction_influence": 14}
    assert optional(planned(15, ProbeBudget(seconds, last, 90.0))) == ["arithmetic"]
    assert optional(planned(15, ProbeBudget(seconds, last, 76.0))) == []  # 25.3 s, 4.3 of them left
    assert optional(planned(18, ProbeBudget(seconds, dict.fromkeys(last, 17), 30.0))) == ["arithmetic"]  # six intervals


def test_the_rest_fits_the_budget() -> None:
    """A quarter of a cycle of 90 s is 30 s of probes; the core takes 20 of them, so one of the two due ones fits."""
    seconds = costs(4.0, direction_influence=6.0, arithmetic=7.0)
    last = dict.fromkeys(EVERYTHING, 9) | {"arithmetic": 7}
    budget = ProbeBudget(seconds, last, 90.0)
    assert optional(planned(10, budget)) == ["arithmetic"]
    assert sum(seconds[request.probe] for request in planned(10, budget)) <= 30.0
    assert optional(planned(10, budget, factor=2.0)) == ["arithmetic", "direction_influence"]


def test_the_most_overdue_comes_first() -> None:
    """Overdue by intervals, not by cycles; ties by name. What does not fit makes room for what does."""
    last = {"direction_influence": 10, "arithmetic": 7, "code": 4, "reasoning": 7, "kl": 6, "attention_shift": 9}
    budget = ProbeBudget(costs(1.0), last | {"steering": 10}, 10000.0)
    assert optional(planned(10, budget)) == ["code", "arithmetic", "reasoning"]
    tight = ProbeBudget(costs(1.0, code=100.0), last | {"steering": 10}, 21.0)  # 7 s, 5 of them for the core
    assert optional(planned(10, tight)) == ["arithmetic", "reasoning"]


def test_one_starved_probe_a_cycle_is_taken_over_the_budget() -> None:
    """Six intervals late: measured though there is no time, one per cycle, the most overdue one."""
    budget = ProbeBudget(costs(50.0), dict.fromkeys(EVERYTHING, 40) | {"code": 22, "kl": 9}, 3.0)
    assert optional(planned(40, budget)) == ["kl"]  # 31 / 5 intervals; code is at 18 / 3
    later = ProbeBudget(costs(50.0), dict.fromkeys(EVERYTHING, 40) | {"code": 22}, 3.0)
    assert optional(planned(40, later)) == ["code"]
    assert optional(planned(39, later)) == []


def test_turns_of_the_tasks_go_on_with_their_interval() -> None:
    """Cycle 12, every 3 cycles: turn 4, so that no part of the pool is left out."""
    requests = planned(12, ProbeBudget(costs(0.1), dict.fromkeys(EVERYTHING, 9), 1000.0))
    assert {request.turn for request in requests if request.probe in TASKS} == {4}


def test_eager_means_every_cycle_and_says_why() -> None:
    """What was measured in the last cycle is due again, with the suspicion as its reason."""
    budget = ProbeBudget(costs(0.1), dict.fromkeys(EVERYTHING, 9), 1000.0)
    assert optional(planned(10, budget)) == ["direction_influence"]
    eager = planned(10, budget, eager=True)
    assert sorted(optional(eager)) == sorted([names.DIRECTION_INFLUENCE, *TASKS, *names.INTERNALS])
    assert {r.reason for r in eager} == {ProbeReason.CORE, ProbeReason.SUSPICION}


@pytest.mark.parametrize("cycle_seconds", [45.0, 110.0])
def test_over_a_long_run_nothing_starves_and_the_budget_holds(cycle_seconds: float) -> None:
    """300 cycles: every probe comes at least every 7 of its intervals, and on average probes take at most their share.

    A single cycle goes over it by one starved probe at most. In 45 s, which leave 15, the core takes 10.
    """
    seconds = costs(2.0, arithmetic=5.0, code=5.0, reasoning=5.0, kl=6.0)
    allowed = cycle_seconds / 3
    last: dict[str, int] = {}
    spent, times = 0.0, Counter[str]()
    longest: dict[str, int] = {}
    for cycle in range(1, 301):
        budget = ProbeBudget(seconds, dict(last), cycle_seconds)
        requests = planned(cycle, budget)
        assert requests == planned(cycle, budget)
        assert sum(seconds[request.probe] for request in requests) <= allowed + max(seconds.values())
        for request in requests:
            longest[request.probe] = max(longest.get(request.probe, 0), cycle - last.get(request.probe, 0))
            last[request.probe] = cycle
            times[request.probe] += 1
            spent += seconds[request.probe]
    intervals = {names.DIRECTION_INFLUENCE: 1, **dict.fromkeys(TASKS, 3), **dict.fromkeys(names.INTERNALS, 5)}
    assert {probe: longest[probe] for probe, every in intervals.items() if longest[probe] > 7 * every} == {}
    assert spent / 300 <= allowed
    assert all(times[probe] == 300 for probe in CORE)


def test_an_anchor_that_was_a_candidate_needs_only_what_decides() -> None:
    """What is compared item by item in every cycle, and nothing that would cost time in each of them."""
    assert [request.probe for request in anchor_plan(None, CONFIG, TASKS)] == list(names.CORE_TRAINER)


def test_the_base_gets_everything_compared_and_few_answers() -> None:
    """Fixed items and the first part of each pool; the probes that look inside the policy are not an anchor's."""
    requests = anchor_plan(1, CONFIG, TASKS)
    assert [r.probe for r in requests] == [*names.CORE_TRAINER, names.DIRECTION_INFLUENCE, *names.CORE_ENGINE, *TASKS]
    assert {(r.reason, r.turn, r.count) for r in requests} == {(ProbeReason.ANCHOR, 0, None)}


def test_a_reference_is_measured_in_batches_of_the_usual_size() -> None:
    """60 items of pools that go by 32 and by 24: two and three turns, so that answers have their usual companions."""
    requests = anchor_plan(60, CONFIG, TASKS)
    assert [r.turn for r in requests if r.probe == "accept"] == [0, 1]
    assert [r.turn for r in requests if r.probe == "code"] == [0, 1, 2]
    assert [r.turn for r in requests if r.probe == "nll"] == [0]
    assert {request.count for request in requests} == {None}


def test_a_pack_cannot_take_the_name_of_a_probe() -> None:
    """Its results could not be told from the probe's; other packs become capabilities, by name."""
    assert names.capabilities(["reasoning", "accept", "code", "push_back"]) == ("code", "reasoning")
    with pytest.raises(PackError, match="cannot be called kl, which is a probe; rename the pack"):
        names.capabilities(["accept", "kl"])
