from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watchdog_records import answers, seasoned

from daemon.config.watching import WatchdogConfig
from daemon.domain.verdicts import Anchor, History, PassCount
from daemon.watchdog import cusum, items
from daemon.watchdog.cusum import Reference, Watch

CONFIG = WatchdogConfig()
UP, DOWN = math.log(2.0), math.log(0.8 / 0.9)
"""What a failure and a pass add at p0 = 10 %: odds 1/9 times 2.25 are 1/4, so p1 = 20 %."""


def _watch(history: History, **failures: int) -> Watch:
    """24 answers of each probe named, so many of them failed."""
    measured = {probe: answers(probe, count, 24) for probe, count in failures.items()}
    results = [result for each in measured.values() for result in each]
    return cusum.watch(history, items.by_probe(results, "the candidate"), CONFIG)


def _chain(counts: list[dict[str, int]], references: Any = None, depth: int = 30) -> list[Watch]:
    """One promoted step after another, each with the detectors of the one before."""
    found: list[Watch] = []
    for number, failures in enumerate(counts):
        past = seasoned(depth=depth + number, references=references, detectors=found[-1].evidence() if found else {})
        found.append(_watch(past, **failures))
    return found


def test_a_failure_adds_and_a_pass_takes_away_what_the_design_says() -> None:
    """At 10 % against 20 %: 6 failures of 24 give 6 ln 2 + 18 ln(8/9) = 2.039."""
    found = _watch(seasoned(), accept=6).tracks["accept"]
    assert found.s == pytest.approx(6 * UP + 18 * DOWN) == pytest.approx(2.0388, abs=1e-4)
    assert (found.cycles, found.failures, found.num_items, found.p0) == (1, 6, 24, 0.1)


def test_s_never_falls_below_zero() -> None:
    """2 failures of 24 speak for the reference: S is 0, not negative, and nothing is counted."""
    found = _watch(seasoned(), accept=2).tracks["accept"]
    assert (found.s, found.cycles, found.failures, found.num_items) == (0.0, 0, 0, 0)


def test_s_adds_up_over_cycles_and_remembers_where_it_was_zero() -> None:
    """0, then 5 and 6 failures: the sums are those of both cycles, the last sound checkpoint is that of the zero."""
    _, second, third = _chain([{"accept": 1}, {"accept": 5}, {"accept": 6}])
    found = third.tracks["accept"]
    assert second.tracks["accept"].since == Anchor("v31", 36, 31)  # the candidate of the first cycle
    assert found.since == Anchor("v31", 36, 31)
    assert found.s == pytest.approx(11 * UP + 37 * DOWN)
    assert (found.cycles, found.failures, found.num_items) == (2, 11, 48)


def test_a_return_to_zero_moves_the_change_point() -> None:
    """Up, back to 0, up again: the checkpoint of the second zero counts."""
    found = _chain([{"accept": 4}, {"accept": 0}, {"accept": 5}])[-1].tracks["accept"]
    assert found.since == Anchor("v32", 37, 32)
    assert (found.cycles, found.failures) == (1, 5)


def test_a_probe_that_was_not_measured_keeps_its_state() -> None:
    """Two cycles without answers change neither S nor its counts nor E."""
    first, second, third = _chain([{"code": 5}, {}, {}], {"code": {"base": PassCount(40, 400)}})
    assert third.tracks["code"].s == second.tracks["code"].s == first.tracks["code"].s > 0
    assert third.tracks["code"].since == first.tracks["code"].since
    assert third.tracks["code"].log_e == first.tracks["code"].log_e
    assert not third.tracks["code"].measured


def test_the_change_point_of_a_scheduled_probe_is_the_checkpoint_that_it_was_measured_on() -> None:
    """At 0, two cycles unmeasured, then worse: the two cycles between are not called sound."""
    found = _chain([{"code": 1}, {}, {}, {"code": 6}], {"code": {"base": PassCount(40, 400)}})[-1].tracks["code"]
    assert found.since == Anchor("v31", 36, 31)  # the first cycle's candidate; the parent is v33
    assert found.cycles == 3


@pytest.mark.parametrize("references", [{}, {"code": {"base": PassCount(40, 400)}}])
def test_a_probe_that_is_measured_no_more_is_forgotten(references: dict[str, Any]) -> None:
    """31 promoted steps after its last measurement the detectors of a pack that was removed hold nothing back."""
    usual = {"code": {"base": PassCount(40, 400)}}
    found = _chain([{"code": 6}, *[{}] * 30], usual)[-1]
    assert found.tracks["code"].s == pytest.approx(2.0388, abs=1e-4)
    past = seasoned(depth=61, references=references, detectors=found.evidence())
    assert cusum.scores(_watch(past).evidence()) == dict.fromkeys(references, 0.0)


def test_a_sum_that_returned_to_zero_was_measured_all_the_same() -> None:
    """35 steps over zero, then at zero, then without a turn: not forgotten, and sound as of the step at zero."""
    found = _chain([*[{"code": 4}] * 35, *[{"code": 0}] * 6, {}], {"code": {"base": PassCount(40, 400)}})
    assert found[-3].tracks["code"].s > found[-2].tracks["code"].s == 0.0
    last = found[-1].tracks["code"]
    assert last.log_e == found[-2].tracks["code"].log_e is not None
    assert last.since.depth == 71


def test_a_measurement_after_a_long_time_still_counts_on() -> None:
    """Measured again in the 31st step, before anything was forgotten."""
    usual = {"code": {"base": PassCount(40, 400)}}
    found = _chain([{"code": 6}, *[{}] * 30, {"code": 6}], usual)[-1].tracks["code"]
    assert found.s == pytest.approx(2 * 2.0388, abs=1e-3) and found.cycles == 32


def test_a_probe_is_followed_from_the_end_of_warm_up_even_if_its_turn_comes_later() -> None:
    """A scheduled probe first measured at step 23 blames what came since step 20, where warm-up ended."""
    references = {"code": {"base": PassCount(40, 400)}}
    found = _chain([{}, {}, {"code": 6}], references, depth=20)[-1].tracks["code"]
    assert found.since == Anchor("v20", 25, 20)


@pytest.mark.parametrize(("depth", "watched"), [(0, False), (19, False), (20, True)])
def test_pass_rates_do_not_decide_during_warm_up(depth: int, watched: bool) -> None:
    """With 20 warm-up cycles the 21st promoted step is the first that a CUSUM looks at."""
    found = _watch(seasoned(depth=depth), accept=20)
    assert ("accept" in found.tracks) is watched
    assert ("warming up" in found.not_watched.get("accept", "")) is not watched


@pytest.mark.parametrize(
    ("counts", "whose"),
    [
        ({"base": PassCount(80, 400), "baked": PassCount(40, 400)}, ["baked", "base"]),
        ({"base": PassCount(40, 400), "baked": PassCount(80, 400)}, ["base", "baked"]),
        ({"base": PassCount(40, 359), "baked": PassCount(80, 400)}, ["baked"]),  # too few to count
        ({"base": PassCount(40, 360)}, ["base"]),  # 40 of 400 answers that nobody could judge
        ({"base": PassCount(40, 359)}, []),
        ({}, []),
    ],
)
def test_the_references_are_those_large_enough_the_better_first(counts: dict[str, PassCount], whose: list[str]) -> None:
    """Of 400 answers nine tenths have to be judged; of base and baked the smaller failure rate comes first."""
    assert cusum.large_enough(counts, 400) == tuple(Reference(each, counts[each]) for each in whose)


@pytest.mark.parametrize(("reference_items", "least"), [(400, 360), (20, 18), (21, 19), (30, 27), (70, 63), (1, 1)])
def test_nine_tenths_are_rounded_up(reference_items: int, least: int) -> None:
    """In whole numbers, so that no product of floats asks for one answer more."""
    assert cusum.enough(reference_items) == least


@pytest.mark.parametrize(("reference_items", "watched"), [(400, True), (401, False)])
def test_answers_that_nobody_could_judge_do_not_unwatch_a_probe(reference_items: int, watched: bool) -> None:
    """360 of the base's answers could be judged, and no more ever will be: enough for 400, not for 401."""
    past = seasoned(references={"accept": {"base": PassCount(36, 360)}})
    config = CONFIG.model_copy(update={"reference_items": reference_items})
    measured = items.by_probe(answers("accept", 6, 24), "the candidate")
    assert ("accept" in cusum.watch(past, measured, config).tracks) is watched


def test_without_a_reference_a_probe_is_warming_up() -> None:
    """It is named with the reason, and has no state."""
    found = _watch(seasoned(references={"accept": {"base": PassCount(10, 100)}}), accept=24)
    assert found.not_watched == {"accept": "warming up: no reference has 360 answers yet"}
    assert not found.tracks


def test_a_probe_that_nearly_always_fails_is_not_watched() -> None:
    """Above 90 % failures there is nothing left to lose; exactly 90 % is still watched."""
    references = {"code": {"base": PassCount(361, 400)}, "reasoning": {"base": PassCount(360, 400)}}
    found = _watch(seasoned(references=references), code=24, reasoning=24)
    assert found.not_watched == {"code": "nothing left to lose: 90% fail on the base"}
    assert list(found.tracks) == ["reasoning"]


def test_a_reference_that_never_fails_counts_as_two_percent() -> None:
    """Otherwise the first failure ever would be infinitely strong evidence."""
    found = _watch(seasoned(references={"accept": {"base": PassCount(0, 400)}}), accept=1).tracks["accept"]
    p1 = 2.25 * 0.02 / (0.98 + 2.25 * 0.02)
    assert found.p0 == 0.02
    assert found.s == pytest.approx(max(0.0, math.log(p1 / 0.02) + 23 * math.log((1 - p1) / 0.98)))


def test_the_e_detector_by_hand() -> None:
    """E = (0 + 1) L, then (E + 1) L: with L = 2^f (8/9)^(24 - f), for 3 and then 6 failures."""
    first, second = _chain([{"accept": 3}, {"accept": 6}])
    one = 2**3 * (8 / 9) ** 21
    two = (one + 1) * 2**6 * (8 / 9) ** 18
    assert first.evidence()["e"]["accept"] == pytest.approx(math.log(one))
    assert second.evidence()["e"]["accept"] == pytest.approx(math.log(two))


def test_the_audit_figure_is_the_mean_over_watched_probes() -> None:
    """push_back was never measured: its E is 0, and it is in the mean all the same."""
    found = _watch(seasoned(), accept=3).evidence()
    assert found["e"]["push_back"] is None
    assert found["e_mean_log"] == pytest.approx(math.log(2**3 * (8 / 9) ** 21 / 2))


def test_the_e_detector_does_not_overflow() -> None:
    """400 cycles in which everything fails: E is beyond every float, its logarithm is finite."""
    found = _chain([{"accept": 24}] * 400)[-1].evidence()
    assert found["e"]["accept"] == pytest.approx(400 * 24 * UP, rel=1e-9)
    assert math.isfinite(found["e_mean_log"])


def test_nothing_watched_has_no_mean() -> None:
    """In warm-up the audit figure is absent."""
    assert _watch(seasoned(depth=3), accept=3).evidence()["e_mean_log"] is None


@given(st.lists(st.integers(0, 24), min_size=1, max_size=12))
def test_the_state_survives_json_and_equals_page_s_definition(failures: list[int]) -> None:
    """S after n cycles is the largest sum of the newest k cycles' evidence, k from 0: carried state loses nothing."""
    found = _chain([{"accept": count} for count in failures])[-1].tracks["accept"]
    steps = [count * UP + (24 - count) * DOWN for count in failures]
    largest = max(math.fsum(steps[len(steps) - k :]) for k in range(len(steps) + 1))
    assert found.s == pytest.approx(largest, abs=1e-9)
