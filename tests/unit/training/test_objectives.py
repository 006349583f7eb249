"""ORPO against values derived by hand and against an independent float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daemon.training.objectives import log1mexp, log_odds_ratio, orpo


def test_hand_derived_values() -> None:
    """With p(chosen) = 1/2 and p(rejected) = 1/5 per token, odds are 1 and 1/4: log odds ratio ln 4, by hand.

    -logsigmoid(ln 4) = ln(1 + 1/4) = ln 1.25; NLL = ln 2; loss = ln 2 + 0.1 ln 1.25.
    """
    c, r = torch.tensor(math.log(0.5)), torch.tensor(math.log(0.2))
    loss = orpo(-c, c, r, 0.1)
    assert loss.log_odds is not None and loss.odds_loss is not None
    torch.testing.assert_close(loss.log_odds, torch.tensor(math.log(4.0)))
    torch.testing.assert_close(loss.odds_loss, torch.tensor(math.log(1.25)))
    torch.testing.assert_close(loss.total, torch.tensor(math.log(2.0) + 0.1 * math.log(1.25)))


def test_gradient_by_hand() -> None:
    """d(odds loss)/dc = -sigmoid(-z) / (1 - p_c) with z the log odds ratio; by hand -(1/5) / (1/2) = -0.4."""
    c = torch.tensor(math.log(0.5), requires_grad=True)
    r = torch.tensor(math.log(0.2))
    loss = orpo(torch.tensor(0.0), c, r, 1.0)
    loss.total.backward()
    torch.testing.assert_close(c.grad, torch.tensor(-0.4))


def test_chosen_only_has_no_odds_term() -> None:
    """Without a rejected side the loss is the NLL alone."""
    loss = orpo(torch.tensor(1.5), torch.tensor(-1.5), None, 0.1)
    assert loss.total.item() == 1.5
    assert loss.odds_loss is None and loss.log_odds is None


@given(st.floats(min_value=-60.0, max_value=-1e-6))
def test_log1mexp_agrees_with_float64(x: float) -> None:
    """log1mexp in float32 is within float32 error of log1p(-exp(x)) computed in float64 by the math module."""
    reference = math.log(-math.expm1(x))
    found = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    assert found == pytest.approx(reference, rel=1e-9, abs=1e-12)


@given(st.floats(min_value=-1e4, max_value=0.0, width=32), st.floats(min_value=-1e4, max_value=0.0, width=32))
def test_no_nan_anywhere(chosen: float, rejected: float) -> None:
    """From certain (0) to hopeless (-10000) log-probabilities, loss and gradients are finite: the known ORPO NaN."""
    c = torch.tensor(chosen, requires_grad=True)
    r = torch.tensor(rejected, requires_grad=True)
    loss = orpo(-c, c, r, 0.1)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert c.grad is not None and torch.isfinite(c.grad)
    assert r.grad is not None and torch.isfinite(r.grad)


@given(st.floats(min_value=-20.0, max_value=-0.01), st.floats(min_value=-20.0, max_value=-0.01))
def test_log_odds_is_antisymmetric_and_ordered(c: float, r: float) -> None:
    """Swapping the sides flips the sign, and the likelier side has the positive sign."""
    one = log_odds_ratio(torch.tensor(c).double(), torch.tensor(r).double()).item()
    other = log_odds_ratio(torch.tensor(r).double(), torch.tensor(c).double()).item()
    assert one == pytest.approx(-other, abs=1e-9)
    assert (one > 0) == (c > r) or c == r
