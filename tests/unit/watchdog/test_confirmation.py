from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.verdicts import Anchor, PassCount
from daemon.watchdog.confirmation import Confirmation, exact_p
from daemon.watchdog.cusum import Reference, Track


@pytest.mark.parametrize(
    ("fresh", "reference", "p"),
    [
        (PassCount(4, 4), PassCount(0, 4), Fraction(1, 70)),  # Fisher's lady tasting tea, all right
        (PassCount(3, 4), PassCount(1, 4), Fraction(17, 70)),  # one pair confused: 1/70 + 16/70
        (PassCount(2, 2), PassCount(0, 2), Fraction(1, 6)),
        (PassCount(0, 5), PassCount(3, 5), Fraction(1)),  # fewer failures than usual
        (PassCount(0, 5), PassCount(0, 5), Fraction(1)),
        (PassCount(5, 5), PassCount(5, 5), Fraction(1)),
    ],
)
def test_known_values(fresh: PassCount, reference: PassCount, p: Fraction) -> None:
    """The published values of the tea test, and cases small enough to count on one's fingers."""
    assert exact_p(fresh, reference) == float(p)


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_equals_counting_every_arrangement(num_fresh: int, num_reference: int, data: st.DataObject) -> None:
    """Of all ways to place the failures among the answers, the share with at least as many in the fresh sample."""
    fresh, reference = data.draw(st.integers(0, num_fresh)), data.draw(st.integers(0, num_reference))
    placed = list(itertools.combinations(range(num_fresh + num_reference), fresh + reference))
    as_many = sum(sum(place < num_fresh for place in each) >= fresh for each in placed)
    found = exact_p(PassCount(fresh, num_fresh), PassCount(reference, num_reference))
    assert found == float(Fraction(as_many, len(placed)))


def test_more_failures_are_never_less_certain() -> None:
    """p falls with every failure more among 200 fresh answers, and doubling 10 % is far beyond 0.005."""
    reference = PassCount(40, 400)
    values = [exact_p(PassCount(failures, 200), reference) for failures in range(201)]
    assert values[0] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert values[40] < 0.001 < 0.4 < values[20]
    assert values[200] > 0.0


def _confirmation(failures: int, p: float, cycles: int = 4) -> Confirmation:
    track = Track(4.5, Anchor("v31", 36, 31), cycles, 30, 96, 0.18, 5.0, measured=True)
    return Confirmation("accept", track, Reference("base", PassCount(72, 400)), PassCount(failures, 200), p, 0.005)


def test_the_sentences() -> None:
    """A person reads which probe, from what to what, over how many cycles, and how certain."""
    fallen = "accept fell from 82 % to 61 % over 4 cycles; confirmed on 200 fresh prompts, p = 0.0007"
    assert _confirmation(78, 0.0007).sentence == fallen
    assert "over 1 cycle; confirmed" in _confirmation(78, 0.0007, cycles=1).sentence
    cleared = "accept was suspect, 82 % before and 81 % now; cleared on 200 fresh prompts, p = 0.43"
    assert _confirmation(38, 0.4321).sentence == cleared


@pytest.mark.parametrize(("p", "confirmed"), [(0.00499, True), (0.005, False)])
def test_confirmed_below_the_limit(p: float, confirmed: bool) -> None:
    """Exactly at the limit is not below it."""
    assert _confirmation(60, p).confirmed is confirmed
