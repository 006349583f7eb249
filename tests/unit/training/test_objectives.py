"""The objectives against values derived by hand, finite differences, and extreme log-probabilities.

Every tensor is a scalar; `c` and `r` stand for the chosen and the rejected answer's log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daemon.training.objectives import LARGEST_LOGPROB, Loss, dpo, dpop, ipo, log1mexp, log_odds_ratio, orpo, sft

LN3 = math.log(3.0)
SMALLEST_NORMAL_LOG = {torch.float32: -87.0, torch.float64: -708.0}
"""Below exp of this a gradient is subnormal or 0."""

# (c, r, reference of c, reference of r) -> loss; `nll` is 0, so that the preference term is alone in `total`.
PAIR_OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Loss]] = {
    "orpo": lambda c, r, ref_c, ref_r: orpo(torch.zeros_like(c), c, r, 1.0),
    "dpo": lambda c, r, ref_c, ref_r: dpo(torch.zeros_like(c), c, r, ref_c, ref_r, 0.1),
    "ipo": lambda c, r, ref_c, ref_r: ipo(torch.zeros_like(c), c, r, ref_c, ref_r, 0.1),
    "dpop": lambda c, r, ref_c, ref_r: dpop(torch.zeros_like(c), c, r, ref_c, ref_r, 0.1, 5.0),
}

extremes = st.sampled_from([0.0, -1e-8, LARGEST_LOGPROB, -1e4])
near_certain = st.floats(min_value=-12.0, max_value=0.0).map(lambda exponent: -(10.0**exponent))
anywhere = st.floats(min_value=-1e4, max_value=0.0)
logprobs = extremes | near_certain | anywhere
dtypes = st.sampled_from([torch.float32, torch.float64])
unhurried = settings(deadline=None)


# --- values and gradients by hand ------------------------------------------------------------------------------


def test_sft_is_the_nll() -> None:
    """SFT minimises the NLL and reports no preference."""
    nll = torch.tensor(1.5)
    assert sft(nll) == Loss(total=nll, nll=nll, preference_loss=None, logit=None)


def test_orpo_by_hand() -> None:
    """With p(chosen) = 1/2 and p(rejected) = 1/5 per token, odds are 1 and 1/4: log odds ratio ln 4.

    -logsigmoid(ln 4) = ln(1 + 1/4) = ln 1.25; NLL = ln 2; loss = ln 2 + 0.1 ln 1.25. The term's derivatives are
    -sigmoid(-ln 4) / (1 - p_c) = -(1/5) / (1/2) = -0.4 and (1/5) / (4/5) = 0.25; the NLL adds -1 to the first.
    """
    c, r = _leaf(math.log(0.5)), _leaf(math.log(0.2))
    loss = orpo(-c, c, r, 0.1)
    loss.total.backward()
    _assert_parts(loss, math.log(2.0) + 0.1 * math.log(1.25), math.log(2.0), math.log(1.25), math.log(4.0))
    _assert_gradients(c, r, -1.0 - 0.04, 0.025)


def test_dpo_by_hand() -> None:
    """One nat above the reference for chosen, one below for rejected: logit 2 beta, here ln 3.

    -logsigmoid(ln 3) = ln(4/3); derivatives -+beta * sigmoid(-ln 3) = -+beta / 4. The NLL is reported, not added.
    """
    c, r, beta = _leaf(-2.0), _leaf(-5.0), LN3 / 2.0
    loss = dpo(-c / 4.0, c, r, _constant(-3.0), _constant(-4.0), beta)
    loss.total.backward()
    _assert_parts(loss, math.log(4.0 / 3.0), 0.5, math.log(4.0 / 3.0), LN3)
    _assert_gradients(c, r, -beta / 4.0, beta / 4.0)


def test_ipo_by_hand() -> None:
    """A preference of 2 nats with beta 0.1 has target 5: loss (2 - 5)^2 = 9, derivatives -+2 * 3."""
    c, r = _leaf(-2.0), _leaf(-5.0)
    loss = ipo(-c, c, r, _constant(-3.0), _constant(-4.0), 0.1)
    loss.total.backward()
    _assert_parts(loss, 9.0, 2.0, 9.0, 2.0)
    _assert_gradients(c, r, -6.0, 6.0)


def test_ipo_turns_round_past_its_target() -> None:
    """With beta 0.5 the target is 1, and a preference of 2 nats is pulled back: loss 1, derivatives +-2."""
    c, r = _leaf(-2.0), _leaf(-5.0)
    loss = ipo(-c, c, r, _constant(-3.0), _constant(-4.0), 0.5)
    loss.total.backward()
    _assert_parts(loss, 1.0, 2.0, 1.0, 2.0)
    _assert_gradients(c, r, 2.0, -2.0)


def test_dpop_by_hand() -> None:
    """Chosen one nat below its reference, rejected three: DPO's difference 2, less 0.5 * 1; beta makes that ln 3.

    Loss ln(4/3); derivatives -beta * (1 + 0.5) / 4 and beta / 4. A penalty outside the logsigmoid, or one without
    beta, gives other numbers.
    """
    c, r, beta = _leaf(-4.0), _leaf(-7.0), LN3 / 1.5
    loss = dpop(-c, c, r, _constant(-3.0), _constant(-4.0), beta, 0.5)
    loss.total.backward()
    _assert_parts(loss, math.log(4.0 / 3.0), 4.0, math.log(4.0 / 3.0), LN3)
    _assert_gradients(c, r, -1.5 * beta / 4.0, beta / 4.0)


@given(st.floats(-50.0, 0.0), st.floats(-50.0, 0.0), st.floats(-50.0, 0.0), st.floats(0.0, 100.0))
@unhurried
def test_dpop_is_dpo_while_chosen_has_not_fallen(r: float, ref_c: float, ref_r: float, penalty: float) -> None:
    """At or above its reference the chosen answer has no penalty: DPOP and DPO agree in value and gradients."""
    results = []
    for objective in (
        lambda c, r: dpop(-c, c, r, _constant(ref_c), _constant(ref_r), 0.1, penalty),
        lambda c, r: dpo(-c, c, r, _constant(ref_c), _constant(ref_r), 0.1),
    ):
        for chosen in (ref_c, ref_c / 2.0):
            c, leaf_r = _leaf(chosen), _leaf(r)
            loss = objective(c, leaf_r)
            loss.total.backward()
            results.append((loss.total.item(), c.grad.item(), leaf_r.grad.item()))
    assert results[:2] == results[2:]


def test_at_the_reference_itself() -> None:
    """A policy equal to its reference: DPO and DPOP lose ln 2 with derivatives -+beta / 2, IPO (1 / 2 beta)^2."""
    for objective, expected, slope in [("dpo", math.log(2.0), 0.05), ("dpop", math.log(2.0), 0.05), ("ipo", 25.0, 10)]:
        c, r = _leaf(-2.0), _leaf(-5.0)
        loss = PAIR_OBJECTIVES[objective](c, r, _constant(-2.0), _constant(-5.0))
        loss.total.backward()
        _assert_parts(loss, expected, 0.0, expected, 0.0)
        _assert_gradients(c, r, -slope, slope)


# --- chosen-only examples --------------------------------------------------------------------------------------


def test_chosen_only_is_the_nll() -> None:
    """Without a rejected side every objective is the NLL alone, with its gradient, and needs no reference."""
    objectives: list[Callable[[Tensor], Loss]] = [
        lambda c: orpo(-c, c, None, 0.1),
        lambda c: dpo(-c, c, None, None, None, 0.1),
        lambda c: ipo(-c, c, None, None, None, 0.1),
        lambda c: dpop(-c, c, None, None, None, 0.1, 50.0),
    ]
    for objective in objectives:
        c = _leaf(-1.5)
        loss = objective(c)
        loss.total.backward()
        assert (loss.total.item(), loss.nll.item(), c.grad.item()) == (1.5, 1.5, -1.0)
        assert loss.preference_loss is None and loss.logit is None


@pytest.mark.parametrize("name", ["dpo", "ipo", "dpop"])
@pytest.mark.parametrize("missing", [2, 3])
def test_a_pair_without_reference_is_refused(name: str, missing: int) -> None:
    """A pair that lacks either of its reference log-probabilities is an error, not a loss without reference."""
    arguments: list[Tensor | None] = [_constant(-1.0)] * 4
    arguments[missing] = None
    with pytest.raises(ValueError, match="reference"):
        PAIR_OBJECTIVES[name](*arguments)


# --- gradients against finite differences ----------------------------------------------------------------------

ORPO_POINTS = [-5e-7, -3e-6, -1e-3, -0.5, -math.log(2.0), -2.0, -30.0]
REFERENCE_POINTS = [0.0, -0.5, -2.0, -30.0]


@pytest.mark.parametrize("name", PAIR_OBJECTIVES)
def test_gradients_are_the_slopes_of_the_loss(name: str) -> None:
    """Autograd's derivatives equal central differences in float64, for c and r over every pair of points.

    The points lie on both sides of each switch: log1mexp's branches and tangent, DPOP's penalty, IPO's target.
    """
    points = ORPO_POINTS if name == "orpo" else REFERENCE_POINTS
    references = _constant(-1.9), _constant(-2.5)

    def loss(c: Tensor, r: Tensor) -> Tensor:
        return PAIR_OBJECTIVES[name](c, r, *references).total

    for chosen in points:
        for rejected in points:
            c, r = _leaf(chosen), _leaf(rejected)
            loss(c, r).backward()
            slope_c = _central_difference(lambda x, r=r: loss(x, r), chosen)
            slope_r = _central_difference(lambda x, c=c: loss(c, x), rejected)
            assert c.grad.item() == pytest.approx(slope_c, rel=1e-5, abs=1e-9), (chosen, rejected)
            assert r.grad.item() == pytest.approx(slope_r, rel=1e-5, abs=1e-9), (chosen, rejected)


@pytest.mark.parametrize("name", PAIR_OBJECTIVES)
def test_autograd_passes_gradcheck(name: str) -> None:
    """torch.autograd.gradcheck agrees in all four inputs, references included, away from switches."""
    inputs = tuple(_leaf(value) for value in (-1.7, -0.6, -1.2, -0.9))
    assert torch.autograd.gradcheck(lambda *x: PAIR_OBJECTIVES[name](*x).total, inputs)


# --- extreme log-probabilities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIR_OBJECTIVES)
@given(c=logprobs, r=logprobs, ref_c=logprobs, ref_r=logprobs, num_tokens=st.sampled_from([1, 1000]), dtype=dtypes)
@unhurried
def test_extremes_are_finite_and_point_the_right_way(
    name: str, c: float, r: float, ref_c: float, ref_r: float, num_tokens: int, dtype: torch.dtype
) -> None:
    """From certain (0) to hopeless (-10000 a token): a finite scalar loss, finite gradients of the right sign.

    Right: the loss never rises with c nor falls with r, and strictly changes with both wherever sigmoid(-logit) is a
    normal number; for IPO, the other way round past its target. Sums are of up to 1000 tokens.
    """
    scale = num_tokens if name in ("dpo", "dpop") else 1
    chosen, rejected = _leaf(c * scale, dtype), _leaf(r * scale, dtype)
    loss = PAIR_OBJECTIVES[name](chosen, rejected, _constant(ref_c * scale, dtype), _constant(ref_r * scale, dtype))
    loss.total.backward()
    for tensor in (loss.total, loss.preference_loss, loss.logit, chosen.grad, rejected.grad):
        assert tensor is not None and tensor.shape == () and tensor.dtype == dtype and torch.isfinite(tensor)
    direction = 1.0 if name != "ipo" else math.copysign(1.0, 5.0 - loss.logit.item())
    assert direction * chosen.grad.item() <= 0.0 <= direction * rejected.grad.item()
    # DPO's beta of 0.1 takes another factor of ten, hence the 5.
    if (name == "ipo" and loss.logit.item() != 5.0) or -loss.logit.item() > SMALLEST_NORMAL_LOG[dtype] + 5.0:
        assert chosen.grad.item() != 0.0 and rejected.grad.item() != 0.0


@given(logprobs, logprobs, dtypes)
@unhurried
def test_orpo_always_raises_the_chosen_answer(chosen: float, rejected: float, dtype: torch.dtype) -> None:
    """With its NLL, ORPO's derivative in c is -1 or steeper everywhere, at c = 0 too."""
    c = _leaf(chosen, dtype)
    orpo(-c, c, _constant(rejected, dtype), 0.1).total.backward()
    assert math.isfinite(c.grad.item()) and c.grad.item() <= -1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rejected", [0.0, -1e-8, LARGEST_LOGPROB])
def test_orpo_lowers_a_certain_rejected_answer(rejected: float, dtype: torch.dtype) -> None:
    """An answer recited with certainty, where a clamp's gradient is 0, is pushed down with slope 1 / (1 - e^-1e-6)."""
    r = _leaf(rejected, dtype)
    orpo(torch.zeros((), dtype=dtype), _constant(-2.0, dtype), r, 1.0).total.backward()
    assert r.grad.item() == pytest.approx(1e6, rel=1e-4)


@given(st.floats(-50.0, -2e-6), st.floats(-50.0, -2e-6))
@unhurried
def test_orpo_gradients_in_float32_are_those_in_float64(chosen: float, rejected: float) -> None:
    """float32 loses no more than rounding: both derivatives are within 1e-4 of float64's, relatively."""
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        c, r = _leaf(chosen, dtype), _leaf(rejected, dtype)
        orpo(torch.zeros((), dtype=dtype), c, r, 1.0).total.backward()
        gradients[dtype] = [c.grad.item(), r.grad.item()]
    assert gradients[torch.float32] == pytest.approx(gradients[torch.float64], rel=1e-4, abs=0.0)


# --- log odds and log1mexp -------------------------------------------------------------------------------------


@given(st.floats(min_value=-20.0, max_value=-0.01), st.floats(min_value=-20.0, max_value=-0.01))
@unhurried
def test_log_odds_is_antisymmetric_and_ordered(c: float, r: float) -> None:
    """Swapping the sides flips the sign, and the likelier side has the positive sign."""
    one = log_odds_ratio(_constant(c), _constant(r)).item()
    other = log_odds_ratio(_constant(r), _constant(c)).item()
    assert one == pytest.approx(-other, abs=1e-9)
    assert (one > 0) == (c > r) or c == pytest.approx(r, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@given(x=st.floats(min_value=-60.0, max_value=-1.1e-6))
@unhurried
def test_log1mexp_agrees_with_fifty_digits(dtype: torch.dtype, tolerance: float, x: float) -> None:
    """log1mexp is log(1 - exp(x)) computed with 50 decimal digits, to a few units in the last place."""
    argument = _constant(x, dtype)
    with localcontext() as context:
        context.prec = 50
        reference = float((1 - Decimal(argument.item()).exp()).ln())
    assert log1mexp(argument).item() == pytest.approx(reference, rel=tolerance, abs=0.0)


def test_log1mexp_goes_on_along_its_tangent() -> None:
    """At 0 it is one nat below its value at -1e-6, ln(1e-6), and its slope there is that of -1e-6: -1 / (e^1e-6 - 1).

    A mean of rounded log-probabilities may come out slightly positive; the tangent holds there too.
    """
    for x, expected in [(0.0, math.log(1e-6) - 1.0), (1e-6, math.log(1e-6) - 2.0)]:
        argument = _leaf(x)
        value = log1mexp(argument)
        value.backward()
        assert value.item() == pytest.approx(expected, abs=2e-6)
        assert argument.grad.item() == pytest.approx(-1e6, rel=1e-6)


# --- helpers ---------------------------------------------------------------------------------------------------


def _leaf(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def _constant(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def _assert_parts(loss: Loss, total: float, nll: float, preference_loss: float, logit: float) -> None:
    found = (loss.total.item(), loss.nll.item(), loss.preference_loss.item(), loss.logit.item())
    assert found == pytest.approx((total, nll, preference_loss, logit), rel=1e-12, abs=1e-12)


def _assert_gradients(c: Tensor, r: Tensor, of_c: float, of_r: float) -> None:
    assert (c.grad.item(), r.grad.item()) == pytest.approx((of_c, of_r), rel=1e-12)


def _central_difference(function: Callable[[Tensor], Tensor], x: float) -> float:
    """Slope at x from two values; the step shrinks with x, since near 0 log odds bend on the scale of x itself."""
    step = 1e-4 * min(1.0, abs(x)) or 1e-6
    with torch.no_grad():
        return (function(_constant(x + step)) - function(_constant(x - step))).item() / (2.0 * step)
