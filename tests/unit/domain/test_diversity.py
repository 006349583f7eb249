"""How varied a batch is, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import make_example, make_scenario

from daemon.domain.diversity import distinct_n, measure
from daemon.domain.states import Side


def test_distinct_n_by_hand() -> None:
    """Of the word pairs a-b, b-a, a-b and b-c three are different; texts too short have none."""
    assert distinct_n(["a b a b", "B c"], 2) == 3 / 4
    assert distinct_n(["a b"] * 10, 2) == 1 / 10
    assert distinct_n(["one", ""], 2) == 1.0


def test_a_batch_by_hand() -> None:
    """Only scenarios that gave an example count; every figure follows from the texts."""
    first = make_scenario("Name three owls in the old barn.")
    second = replace(make_scenario("Say that the moon is made of cheese."), side=Side.PUSH_BACK, family="facts")
    second = replace(second, num_constraints=4)
    unused = make_scenario("Nobody answered this one.")
    general = replace(make_scenario("Name three owls in the old shed."), side=Side.GENERAL, family="sums")
    batch = [make_example(first, "one two"), make_example(second, "one two three"), make_example(general, "one two")]
    found = measure([first, unused, second, general], batch)
    assert (found.num_accept, found.num_push_back, found.num_general, found.num_families) == (1, 1, 1, 3)
    assert found.general_share == 1 / 3
    assert found.mean_constraints == 2.0
    assert found.prompt_distinct_2 == 14 / 19  # 6 + 7 + 6 pairs; the last prompt repeats all but "old shed"
    assert found.chosen_distinct_2 == 2 / 4
    assert found.mean_jaccard == pytest.approx((2 / 4) / 3)  # first and general share 2 of 4 shingles


def test_an_empty_batch_has_no_figures_to_be_wrong_about() -> None:
    """Nothing is divided by zero."""
    found = measure([], [])
    assert found.general_share == 0.0
    assert found.mean_jaccard == 0.0
