from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.errors import DreamdError
from daemon.watchdog.margins import MarginCheck, paired_difference

LEVELS = st.floats(0.5, 8.0)


def test_standard_error_by_hand() -> None:
    """Differences 1, 2, 3, 6: mean 3, squares 4+1+0+9 = 14, variance 14/3, SE sqrt(14/3/4) = 1.0801."""
    found = paired_difference({"a": 2.0, "b": 4.0, "c": 6.0, "d": 10.0}, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0})
    assert found.differences == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 6.0}
    assert (found.mean, found.mean_now, found.mean_anchor) == (3.0, 5.5, 2.5)
    assert found.standard_error == pytest.approx(math.sqrt(14 / 12))
    assert found.lower_bound(2.0) == pytest.approx(3.0 - 2.0 * 1.0801234497)


@pytest.mark.parametrize(("margin", "exceeded"), [(2.5, False), (2.4, False), (2.3, True)])
def test_the_lower_bound_decides_not_the_mean(margin: float, exceeded: bool) -> None:
    """With mean 3 and lower bound 2.37 (SE 0.632): a margin of 2.5 holds although the mean is beyond it."""
    now = {"a": 2.0, "b": 3.0, "c": 3.0, "d": 3.0, "e": 4.0}
    found = paired_difference(now, dict.fromkeys(now, 0.0))
    assert found.standard_error == pytest.approx(math.sqrt(2 / 4 / 5))
    assert MarginCheck("the base", found, margin, 2.0).exceeded is exceeded


def test_exactly_at_the_margin_is_inside() -> None:
    """A margin is exceeded only by going beyond it."""
    found = paired_difference({"a": 1.5, "b": 2.5}, {"a": 1.0, "b": 2.0})
    assert not MarginCheck("the base", found, 0.5, 3.3).exceeded
    assert MarginCheck("the base", found, 0.4999, 3.3).exceeded


def test_documents_of_one_side_only_are_an_error() -> None:
    """A document without its counterpart is named, never dropped."""
    with pytest.raises(DreamdError, match="c, d"):
        paired_difference({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "d": 1.0})


@pytest.mark.parametrize("documents", [{}, {"a": 1.0}])
def test_one_document_has_no_standard_error(documents: dict[str, float]) -> None:
    """Fewer than two documents are refused instead of being called certain."""
    with pytest.raises(DreamdError, match="at least 2 items"):
        paired_difference(documents, documents)


@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=2, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(pairs: list[tuple[float, float]], shuffler: random.Random) -> None:
    """Any order of documents gives the same bits: a verdict recomputed from rows is the stored one."""
    now = {f"doc-{number}": pair[0] for number, pair in enumerate(pairs)}
    anchor = {f"doc-{number}": pair[1] for number, pair in enumerate(pairs)}
    order = list(now)
    shuffler.shuffle(order)
    straight = paired_difference(now, anchor)
    mixed = paired_difference({name: now[name] for name in order}, {name: anchor[name] for name in reversed(order)})
    assert mixed == straight


@given(st.lists(LEVELS, min_size=2, max_size=60))
def test_identical_measurements_differ_by_exactly_zero(values: list[float]) -> None:
    """The same numbers twice: mean and standard error are 0.0, not nearly."""
    documents = {f"doc-{number}": value for number, value in enumerate(values)}
    found = paired_difference(documents, dict(documents))
    assert (found.mean, found.standard_error) == (0.0, 0.0)
