"""Training objectives: pure functions on tensors.

Shapes: `R` response tokens. `c` and `r` are scalars: mean log-probability per response token of the chosen
and the rejected answer, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_LOGPROB = -1e-6
"""A mean log-probability of 0 (every token certain) has infinite odds; it is clamped to this."""


@dataclass(frozen=True)
class Loss:
    """One example's loss and its parts, all scalars; `log_odds` and `odds_loss` are None without a rejected side."""

    total: Tensor
    nll: Tensor
    odds_loss: Tensor | None = None
    log_odds: Tensor | None = None


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate at both ends and with finite gradients.

    Near 0, `1 - exp(x)` cancels, so log(-expm1(x)) is used; far from 0, log1p(-exp(x)). Values above
    `LARGEST_LOGPROB` are clamped to it: a NaN from exactly this term is a known failure in other trainers.

    Source: Maechler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    x = x.clamp(max=LARGEST_LOGPROB)
    near = x > -math.log(2.0)
    # Each branch sees only inputs it can differentiate: torch.where alone would let NaN gradients through.
    x_near = torch.where(near, x, torch.full_like(x, -0.1))
    x_far = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, torch.log(-torch.expm1(x_near)), torch.log1p(-torch.exp(x_far)))


def log_odds_ratio(c: Tensor, r: Tensor) -> Tensor:
    """log(odds(chosen) / odds(rejected)), with odds(p) = p / (1 - p) of per-token geometric mean probabilities.

    Source: ORPO, arXiv 2403.07691, equations 4 and 7.
    """
    c, r = c.clamp(max=LARGEST_LOGPROB), r.clamp(max=LARGEST_LOGPROB)
    return (c - r) - (log1mexp(c) - log1mexp(r))


def orpo(nll: Tensor, c: Tensor, r: Tensor | None, weight: float) -> Loss:
    """ORPO: NLL of the chosen answer plus `weight` times -logsigmoid of the log odds ratio.

    Args:
        nll: negative log-likelihood term, nats per token.
        c: chosen mean log-probability.
        r: rejected mean log-probability; None for a chosen-only example, which has no odds term.
        weight: the paper's lambda, 0.1.

    Source: arXiv 2403.07691, equation 6.
    """
    if r is None:
        return Loss(total=nll, nll=nll)
    log_odds = log_odds_ratio(c, r)
    odds_loss = -F.logsigmoid(log_odds)
    return Loss(total=nll + weight * odds_loss, nll=nll, odds_loss=odds_loss, log_odds=log_odds)
