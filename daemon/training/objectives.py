"""Training objectives: pure functions from log-probabilities to one example's loss.

Shapes: every tensor here is a scalar, shape (), float32 or float64; all log-probabilities and losses are in nats.
`c` and `r` are *means* over the response tokens of the chosen and the rejected answer, `chosen` and `rejected` are
*sums* over them; `reference_*` is the same figure under the reference checkpoint, a constant. A chosen-only example
has None for its rejected side, and its loss is `nll` whatever the objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_LOGPROB = -1e-6
"""Above this mean log-probability odds are continued linearly: float32 cannot tell such a value from rounding."""

_LOG1MEXP_SLOPE = -1.0 / math.expm1(-LARGEST_LOGPROB)
"""Derivative of log(1 - exp(x)) at `LARGEST_LOGPROB`."""


@dataclass(frozen=True)
class Loss:
    """One example's loss and its parts, scalars in nats; the last two are None without a rejected side."""

    total: Tensor
    """What is minimised."""
    nll: Tensor
    """Negative log-likelihood of the chosen answer; a part of `total` in SFT, ORPO and chosen-only examples."""
    preference_loss: Tensor | None = None
    """The pair's own term, before any weight."""
    logit: Tensor | None = None
    """What goes into the logsigmoid, or for IPO into the square; above 0 the pair is ordered as wished."""


def sft(nll: Tensor) -> Loss:
    """Supervised fine-tuning: the chosen answer's NLL, whatever was rejected.

    Args:
        nll: nats per token.
    """
    return Loss(total=nll, nll=nll)


def orpo(nll: Tensor, c: Tensor, r: Tensor | None, weight: float) -> Loss:
    """ORPO: NLL of the chosen answer plus `weight` times -logsigmoid of the log odds ratio.

    Args:
        nll: nats per token.
        c: mean log-probability of the chosen answer.
        r: mean log-probability of the rejected answer; None for a chosen-only example.
        weight: the paper's lambda, 0.1.

    Source: ORPO, arXiv 2403.07691, equation 6.
    """
    if r is None:
        return sft(nll)
    logit = log_odds_ratio(c, r)
    preference_loss = -F.logsigmoid(logit)
    return Loss(nll + weight * preference_loss, nll, preference_loss, logit)


def dpo(
    nll: Tensor,
    chosen: Tensor,
    rejected: Tensor | None,
    reference_chosen: Tensor | None,
    reference_rejected: Tensor | None,
    beta: float,
) -> Loss:
    """DPO: -logsigmoid of beta times how much further than the reference the policy prefers the chosen answer.

    Args:
        nll: nats per token; reported, and the loss of a chosen-only example.
        chosen: summed log-probability of the chosen answer.
        rejected: summed log-probability of the rejected answer; None for a chosen-only example.
        reference_chosen: `chosen` under the reference; may be None without a rejected side.
        reference_rejected: `rejected` under the reference; likewise.
        beta: strength of the pull to the reference, 1 / nats.

    Raises:
        ValueError: a pair without the reference's log-probabilities.

    Source: DPO, arXiv 2305.18290, equation 7.
    """
    if rejected is None:
        return sft(nll)
    ratio_chosen = _log_ratio(chosen, reference_chosen)
    ratio_rejected = _log_ratio(rejected, reference_rejected)
    return _logistic(nll, beta * (ratio_chosen - ratio_rejected))


def ipo(
    nll: Tensor,
    c: Tensor,
    r: Tensor | None,
    reference_c: Tensor | None,
    reference_r: Tensor | None,
    beta: float,
) -> Loss:
    """IPO: squared distance of the preference over the reference from its target 1 / (2 beta).

    Past the target the gradient turns round: IPO bounds the preference where DPO only ever widens it. Means, not sums,
    so that beta and the loss do not depend on the answers' lengths: the equation leaves this open, its authors
    confirmed it to implementers.

    Args:
        nll: nats per token; reported, and the loss of a chosen-only example.
        c: mean log-probability of the chosen answer.
        r: mean log-probability of the rejected answer; None for a chosen-only example.
        reference_c: `c` under the reference; may be None without a rejected side.
        reference_r: `r` under the reference; likewise.
        beta: the paper's tau, 1 / nats per token.

    Raises:
        ValueError: a pair without the reference's log-probabilities.

    Source: IPO, arXiv 2310.12036, equation 17.
    """
    if r is None:
        return sft(nll)
    logit = _log_ratio(c, reference_c) - _log_ratio(r, reference_r)
    preference_loss = (logit - 1.0 / (2.0 * beta)) ** 2
    return Loss(preference_loss, nll, preference_loss, logit)


def dpop(
    nll: Tensor,
    chosen: Tensor,
    rejected: Tensor | None,
    reference_chosen: Tensor | None,
    reference_rejected: Tensor | None,
    beta: float,
    penalty: float,
) -> Loss:
    """DPO-positive: DPO whose logit loses `beta * penalty` per nat that the chosen answer is below its reference.

    The penalty sits inside the logsigmoid: -logsigmoid(beta * (DPO's difference - penalty * max(0, reference_chosen -
    chosen))). It is 0, and so is its gradient, while the chosen answer is at least as likely as under the reference.

    Args:
        nll: nats per token; reported, and the loss of a chosen-only example.
        chosen: summed log-probability of the chosen answer.
        rejected: summed log-probability of the rejected answer; None for a chosen-only example.
        reference_chosen: `chosen` under the reference; may be None without a rejected side.
        reference_rejected: `rejected` under the reference; likewise.
        beta: strength of the pull to the reference, 1 / nats.
        penalty: the paper's lambda, 0 or more, a pure number; 50 there, with beta 0.3.

    Raises:
        ValueError: a pair without the reference's log-probabilities.

    Source: Smaug, arXiv 2402.13228, equation 3.
    """
    if rejected is None:
        return sft(nll)
    ratio_chosen = _log_ratio(chosen, reference_chosen)
    ratio_rejected = _log_ratio(rejected, reference_rejected)
    shortfall = torch.relu(-ratio_chosen)
    return _logistic(nll, beta * (ratio_chosen - ratio_rejected - penalty * shortfall))


def log_odds_ratio(c: Tensor, r: Tensor) -> Tensor:
    """log(odds(chosen) / odds(rejected)), with odds(p) = p / (1 - p) of per-token geometric mean probabilities.

    It rises with `c` and falls with `r` everywhere, at 0 too: see `log1mexp`.

    Source: ORPO, arXiv 2403.07691, equations 4 and 7.
    """
    return (c - r) - (log1mexp(c) - log1mexp(r))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate at both ends; value and gradient are finite and consistent for every x.

    Near 0, `1 - exp(x)` cancels, so log(-expm1(x)) is used; far from 0, log1p(-exp(x)). Above `LARGEST_LOGPROB` the
    function goes on along its tangent, to x = 0 and to the slightly positive values that rounding produces: a NaN from
    exactly this term is a known failure in other trainers, and a plain clamp would stop the gradient where a rejected
    answer needs it most.

    Source: Maechler, "Accurately computing log(1 - exp(-|a|))", 2012; the tangent is ours.
    """
    below = x.clamp(max=LARGEST_LOGPROB)
    near = below > -math.log(2.0)
    # torch.where lets a NaN gradient of the unused branch through; up to the bound neither branch has one.
    inside = torch.where(near, torch.log(-torch.expm1(below)), torch.log1p(-torch.exp(below)))
    # relu, not `x - below`: the latter's gradient below the bound is a difference of two slopes of a million.
    return inside + _LOG1MEXP_SLOPE * torch.relu(x - LARGEST_LOGPROB)


def _log_ratio(policy: Tensor, reference: Tensor | None) -> Tensor:
    """log(policy / reference) of one answer."""
    if reference is None:
        raise ValueError("a pair needs the reference's log-probabilities of both answers")
    # Per answer, as policy and reference are close and this rounds little; chosen minus rejected first would not.
    return policy - reference


def _logistic(nll: Tensor, logit: Tensor) -> Loss:
    preference_loss = -F.logsigmoid(logit)
    return Loss(preference_loss, nll, preference_loss, logit)
